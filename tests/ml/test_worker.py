"""The one thread that models are used on: it hands errors over, waits for who listens, works on its own when idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from qlora_demo.errors import RequestError
from qlora_demo.ml.worker import Worker
from qlora_demo.system.halt import Halt


def test_the_worker_hands_errors_to_the_thread_that_asked() -> None:
    worker = Worker()

    def fail() -> None:
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"):
        worker.call(fail)
    assert worker.call(lambda: threading.current_thread().name) == "models"


def test_idle_work_that_fails_does_not_end_the_thread() -> None:
    tried = threading.Event()

    def fail() -> bool:
        tried.set()
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    worker = Worker(fail)
    assert tried.wait(10)
    assert worker.call(lambda: threading.current_thread().name) == "models"


def test_the_worker_waits_until_an_item_is_dealt_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.ml.worker._PATIENCE_SECONDS", 10)
    events: list[str] = []

    def make() -> Generator[int]:
        for number in range(3):
            events.append(f"make {number}")
            yield number

    for item in Worker().iterate(make, Halt()):
        time.sleep(0.02)
        events.append(f"use {item}")
    assert events == [f"{what} {number}" for number in range(3) for what in ("make", "use")]


def test_the_worker_works_on_its_own_until_somebody_asks() -> None:
    pieces = list(range(1000))
    begun = threading.Event()

    def idle() -> bool:
        begun.set()
        time.sleep(0.005)
        return bool(pieces) and pieces.pop() >= 0

    worker = Worker(idle)
    begun.wait(10)
    left = worker.call(lambda: len(pieces))
    assert left > 0
    worker.call(pieces.clear)
    assert worker.call(lambda: "asked") == "asked"


def test_what_is_stopped_before_its_turn_is_not_waited_for_and_never_begins() -> None:
    worker, halt, go_on, begun = Worker(), Halt(), threading.Event(), list[str]()

    def long() -> Generator[str]:
        yield "begun"
        go_on.wait(30)
        yield "done"

    def short() -> Generator[str]:
        begun.append("short")
        yield "short"

    before = worker.iterate(long, Halt())
    assert next(before) == "begun"
    ended: list[list[str]] = []
    waiting = threading.Thread(target=lambda: ended.append(list(worker.iterate(short, halt))))
    waiting.start()
    waiting.join(0.3)
    assert (ended, waiting.is_alive()) == ([], True)
    halt.set()
    waiting.join(10)
    assert (ended, go_on.is_set()) == ([[]], False)
    go_on.set()
    assert list(before) == ["done"]
    assert worker.call(lambda: list(begun)) == []
