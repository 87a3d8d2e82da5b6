"""What the Benchmark tab shows of results that a kill, a full disk or somebody else took away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.runner import RESULT
from qlora_demo.config import TrainConfig
from qlora_demo.errors import DeviceBusy, WorkError
from qlora_demo.presets import LAPTOP
from qlora_demo.records import Progress, Step
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from qlora_demo.ui.benchmark_tab import Bench
from tests.abandoned import abandoned
from tests.queueing import until

TINY = TrainConfig(model="shape:tiny")


def drawn(part: Any) -> Any:
    """What a component is told to show."""
    return part._constructor_args[0]


def test_a_benchmark_whose_first_write_fails_leaves_nothing(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise WorkError("the disk is full")

    monkeypatch.setattr("qlora_demo.benchmark.runner.write_result", fail)
    with pytest.raises(WorkError):
        abandoned(services.benchmarks, BenchmarkConfig(), TINY)
    assert list(services.benchmarks.root.iterdir()) == []


def test_one_without_a_result_is_shown_as_such_and_can_be_deleted(services: Services) -> None:
    whole = abandoned(services.benchmarks, BenchmarkConfig(), TINY)
    broken = services.benchmarks.root / whole.replace(whole[:8], "20990101")
    broken.mkdir()
    bench = Bench(services, [], [], LAPTOP)
    which, _, progress, result, file, _ = bench.look(None, None)
    assert which["value"] == broken.name
    assert (broken.name, whole) == tuple(name for _, name in which["choices"])
    assert "cannot be read; delete it" in progress and result == ""
    assert drawn(file)["value"] is None
    which, _, progress, *_ = bench.delete(broken.name)
    assert which["value"] == whole and "cannot be read" not in progress


def test_what_works_with_the_models_is_named_where_it_holds_the_device_that_the_chat_took(services: Services) -> None:
    run, halted = services.runs.create(TrainConfig()).id, threading.Event()
    chat = services.lease.acquire("chat", f"of run {run}")
    assert services.holder() == f"chat of run {run}"

    def work(_: Halt) -> Iterator[Step]:
        halted.wait(60)
        yield Step(Progress("done", 1.0))

    services.jobs.start("fidelity", run, work)
    try:
        assert services.holder() == f"fidelity of run {run}, see the Evaluate tab"
        with pytest.raises(DeviceBusy, match=rf"fidelity of {run} is at work, 0%; wait or stop it on the Evaluate tab"):
            Bench(services, [], [], TINY).start("training")
    finally:
        halted.set()
        until(lambda: not services.jobs.going)
        chat.release()
    assert services.benchmarks.names() == []


def test_one_that_is_deleted_while_the_page_is_drawn_is_no_fault(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = abandoned(services.benchmarks, BenchmarkConfig(), TINY)
    every = services.benchmarks.all

    def deleted() -> list[dict[str, Any]]:
        found = every()
        (services.benchmarks.root / name / RESULT).unlink()
        return found

    monkeypatch.setattr(services.benchmarks, "all", deleted)
    *_, file, _ = Bench(services, [], [], LAPTOP).look(name, None)
    assert isinstance(file, gr.DownloadButton) and drawn(file)["value"] is None
