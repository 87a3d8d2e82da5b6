"""What goes on in the background goes on, whatever goes wrong in it, and says so once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.checking import Checks
from qlora_demo.config import TrainConfig
from qlora_demo.engine import OnDemand
from qlora_demo.errors import WorkError
from qlora_demo.records import Note, Progress, RunState
from qlora_demo.services import Services
from qlora_demo.system.locks import HeldLock
from qlora_demo.system.steady import Steady
from qlora_demo.upkeep import background
from qlora_demo.upkeep.dispatch import Dispatcher
from qlora_demo.upkeep.idle import Pauser
from qlora_demo.upkeep.status import AppStatus
from qlora_demo.upkeep.syncing import Syncer
from qlora_demo.visitors.visits import Visits
from tests.queueing import until

Told = list[tuple[str, str, bool]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What is logged: by whom, what went wrong, and whether with its traceback."""
    found: Told = []

    def event(name: str, level: int = 0, trace: object = None, **facts: str) -> None:
        if name == "background.failed":
            found.append((facts["what"], facts["why"], trace is not None))

    monkeypatch.setattr("qlora_demo.system.logs.event", event)
    return found


class Failing:
    """What fails with one error after the other, and then stands still; how often it was tried."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = errors
        self.tried = 0

    def __call__(self, *_: object, **__: object) -> Any:
        self.tried += 1
        if self.tried > len(self.errors):
            threading.Event().wait()
        raise self.errors[self.tried - 1]

    @property
    def over(self) -> bool:
        return self.tried > len(self.errors)


def test_each_message_is_logged_once_and_it_goes_on(told: Told) -> None:
    work = Failing(OSError("a"), RuntimeError("b"), OSError("a"), WorkError("words"), OSError("a"))
    Steady("queue").every(0, work)
    until(lambda: work.over)
    assert told == [
        ("queue", "OSError: a", True),
        ("queue", "RuntimeError: b", True),
        ("queue", "WorkError: words", False),
    ]


@pytest.mark.parametrize("kind", [Dispatcher, Syncer])
def test_no_error_ends_a_thread_of_the_app(
    services: Services, told: Told, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Failing(RuntimeError("CUDA error"), OSError("gone"))
    monkeypatch.setattr(kind, "look", look)
    monkeypatch.setattr(f"{kind.__module__}._SECONDS", 0)
    kind(services).start()
    until(lambda: look.over)
    assert [why for _, why, _ in told] == ["RuntimeError: CUDA error", "OSError: gone"]


def test_no_error_ends_the_pause(services: Services, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = Failing(FileNotFoundError("state.json"), RuntimeError("?"))
    monkeypatch.setattr("qlora_demo.upkeep.idle._SECONDS", 0)
    visits = Visits(lambda: 0.0)
    visits.idle_seconds = lambda: 1.0  # type: ignore[method-assign]
    Pauser(services, pending, visits).start()
    until(lambda: pending.over)
    assert [why for _, why, _ in told] == ["FileNotFoundError: state.json", "RuntimeError: ?"]


def test_a_check_that_breaks_is_told_once_and_begun_again(
    services: Services, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Failing(*[RuntimeError("odd")] * 3)
    services.runs.create(TrainConfig(), RunState("checking"))
    monkeypatch.setattr(HeldLock, "acquire", broken)
    while not broken.over:
        services.checks.look()
    assert told == [("checks", "RuntimeError: odd", True)]


def test_a_check_that_cannot_be_looked_for_is_told_and_the_queue_looks_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(services)
    with monkeypatch.context() as patch:
        patch.setattr(Checks, "look", Failing(OSError("stale file handle")))
        dispatcher.look()
    assert dispatcher.trouble == "stale file handle"


def test_a_run_that_begins_does_not_wait_for_itself(services: Services) -> None:
    run = services.runs.create(TrainConfig(), RunState("queued"))
    held, lease = HeldLock.acquire(run.lock, {}), services.lease.acquire("training", run.id)
    assert held is not None
    (dispatcher := Dispatcher(services)).look()
    assert dispatcher.trouble == ""
    held.release()
    dispatcher.look()
    assert "held by training" in dispatcher.trouble
    lease.release()


def test_models_that_cannot_be_freed_do_not_end_the_queue(
    services: Services, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Failing(RuntimeError("CUDA error: unknown error"), OSError("busy"))
    made: Any = SimpleNamespace(resident=lambda: ("base",), release=release)
    engine = OnDemand(lambda: made)
    engine()
    services.runs.create(TrainConfig(), RunState("queued"))
    monkeypatch.setattr("qlora_demo.upkeep.dispatch._SECONDS", 0)
    dispatcher = Dispatcher(replace(services, engine=engine))
    dispatcher.start()
    until(lambda: release.over)
    assert [why for _, why, _ in told] == ["RuntimeError: CUDA error: unknown error"]
    assert dispatcher.trouble == "busy", "what a person can do something about is told as what the queue waits for"


def test_a_download_counts_as_work_and_what_kills_left_is_cleared_at_the_start(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending: list[Callable[[], bool]] = []

    def pauser(_: Services, asked: Callable[[], bool]) -> Pauser:
        pending.append(asked)
        return Pauser(services, asked)

    for one in (Dispatcher, Pauser):
        monkeypatch.setattr(one, "start", lambda self: None)
    monkeypatch.setattr(background, "Pauser", pauser)
    monkeypatch.setattr("qlora_demo.upkeep.status.hub_answers", lambda: False)
    left = [services.runs.root / ".new-one", services.benchmarks.root / ".deleted-two"]
    for folder in left:
        folder.mkdir(parents=True)
    end: list[bool] = []

    def fetch(_: Any, report: Callable[[Progress], None]) -> None:
        report(Progress("half", 0.5))
        until(lambda: end)

    status = AppStatus()
    settings = replace(services.settings, space="ada/demo", pause_minutes=1)
    background.begin(replace(services, settings=settings, fetch=fetch), status)  # type: ignore[arg-type]
    assert [asked() for asked in pending] == [True]
    until(lambda: not any(folder.exists() for folder in left))
    end.append(True)
    until(lambda: status.notes() == [Note("hub: not reachable")])
    assert [asked() for asked in pending] == [False]
