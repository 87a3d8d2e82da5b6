"""Long work beside the page: one at a time, stopped and failed work keeps what it found."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DeviceBusy, ModelError, RunError, WorkError
from qlora_demo.jobs import Jobs, read_result, save_result, told_result
from qlora_demo.records import Progress, Step
from qlora_demo.results.tables import remarks
from qlora_demo.runs import Run, RunStore, write_state
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt


@pytest.fixture
def run(services: Services) -> Run:
    return services.runs.create(TrainConfig())


@pytest.fixture
def jobs(services: Services) -> Jobs:
    return services.jobs


def wait(jobs: Jobs) -> None:
    deadline = time.monotonic() + 10
    while jobs.last is not None and jobs.last.going:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(halt: Halt) -> Iterator[Step]:
    for count in range(1, 4):
        yield Step(Progress(f"{count} of 3", count / 3), {"count": count})


def test_the_result_is_kept_with_the_run(jobs: Jobs, run: Run) -> None:
    jobs.start("evaluation", run.id, steps)
    wait(jobs)
    assert jobs.last is not None and jobs.last.progress.text == "3 of 3" and jobs.last.error == ""
    found = read_result(run, "evaluation")
    assert found is not None and (found["count"], found["complete"]) == (3, True)


def test_stopped_work_keeps_what_it_has_and_says_that_it_is_not_all(jobs: Jobs, run: Run) -> None:
    begun = threading.Event()

    def work(halt: Halt) -> Iterator[Step]:
        count = 0
        while not halt.is_set():
            count += 1
            yield Step(Progress("counting"), {"count": count})
            begun.set()

    jobs.start("evaluation", run.id, work)
    assert begun.wait(10)
    with pytest.raises(DeviceBusy, match=f"fidelity: evaluation of {run.id} is at work; wait for it or stop it"):
        jobs.start("fidelity", run.id, steps)
    jobs.stop()
    wait(jobs)
    found = read_result(run, "evaluation")
    assert found is not None and found["count"] >= 1 and found["complete"] is False


def test_a_run_is_deleted_when_its_job_has_ended_and_not_before(services: Services, jobs: Jobs, run: Run) -> None:
    begun, end = threading.Event(), threading.Event()

    def work(halt: Halt) -> Iterator[Step]:
        begun.set()
        assert end.wait(10)
        yield Step(Progress("done"), {"count": 1})

    jobs.start("evaluation", run.id, work)
    assert begun.wait(10)
    with pytest.raises(RunError, match=f"^run {run.id}: a job works with it; wait for its end or stop it$"):
        services.runs.delete(run.id)
    end.set()
    wait(jobs)
    services.runs.delete(run.id)
    assert services.runs.names() == []


@pytest.mark.parametrize(
    ("exc", "shown"),
    [(ModelError("model: gone; fetch it"), "model: gone; fetch it"), (ValueError("odd"), "ValueError: odd")],
)
def test_failed_work_says_why_and_the_next_can_start(jobs: Jobs, run: Run, exc: Exception, shown: str) -> None:
    def work(halt: Halt) -> Iterator[Step]:
        yield Step(Progress("begun"))
        raise exc

    jobs.start("evaluation", run.id, work)
    wait(jobs)
    assert jobs.last is not None and jobs.last.error == shown
    jobs.start("evaluation", run.id, steps)
    wait(jobs)
    assert jobs.last.error == ""


def test_a_run_that_does_not_exist_starts_nothing(jobs: Jobs) -> None:
    with pytest.raises(RunError, match="no such run"):
        jobs.start("evaluation", "nothing", steps)
    assert jobs.last is None


def test_a_damaged_result_reads_as_none(services: Services, run: Run) -> None:
    assert read_result(run, "evaluation") is None
    save_result(run, "evaluation", {"a": 1})
    path = run.path / "results" / "evaluation.json"
    for damaged in ('{"a": 1', "[1]", "\x00", "[" * 100_000):
        path.write_text(damaged, "utf-8")
        assert read_result(RunStore(services.settings.runs).get(run.id), "evaluation") is None


def test_a_result_that_cannot_be_written_names_the_folder(run: Run) -> None:
    (run.path / "results").write_text("in the way")
    with pytest.raises(WorkError, match="results: cannot be written"):
        save_result(run, "evaluation", {})


def test_an_app_that_ends_stops_what_is_at_work(services: Services, run: Run) -> None:
    def work(halt: Halt) -> Iterator[Step]:
        while not halt.is_set():
            yield Step(Progress("counting"), {"count": 1})

    services.jobs.start("evaluation", run.id, work)
    services.close()
    wait(services.jobs)
    assert services.jobs.last is not None and not services.jobs.going and not services.jobs.last.error


def test_a_column_whose_adapter_was_trained_on_since_is_named(services: Services) -> None:
    run, other = (services.runs.create(TrainConfig()) for _ in range(2))
    save_result(run, "evaluation", {"variants": {"base": {}, "adapter": {}, f"adapter@{other.id}": {}}})
    assert "outdated" not in (told_result(run, "evaluation", services.runs.adapter_since(run.id)) or {})
    other.adapter.mkdir()
    (other.adapter / "adapter_model.safetensors").touch()
    write_state(other.path, replace(other.state, earlier_seconds=1.0))
    found = told_result(run, "evaluation", services.runs.adapter_since(run.id))
    assert remarks(found) == f"Of the adapter before its run was resumed: adapter@{other.id}."
