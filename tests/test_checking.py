"""Between Start and the queue: what was started is there from the first moment, whatever becomes of page and app."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.checking import RESULT, Checks
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, TooMany, WorkError
from qlora_demo.jobs import read_result
from qlora_demo.records import Progress, RunState, Step
from qlora_demo.runs import Run, RunStore, write_state
from qlora_demo.settings import Limits
from qlora_demo.system.halt import Halt
from qlora_demo.system.locks import HeldLock
from tests.queueing import until


class Reading:
    """A check that goes on until it is let go; what it was asked to read."""

    def __init__(self, fatal: str = "", error: Exception | None = None) -> None:
        self.go, self.asked = threading.Event(), list[TrainConfig]()
        self.fatal, self.error = fatal, error

    def __call__(self, config: TrainConfig, halt: Halt) -> Iterator[Step]:
        self.asked.append(config)
        while not self.go.wait(0.01):
            yield Step(Progress("7 rows"))
        if self.error:
            raise self.error
        yield Step(Progress("8 rows", 1.0), {"fatal": self.fatal, "problems": []})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def status(store: RunStore, run: Run) -> str:
    return store.get(run.id).state.status


def test_a_run_is_there_while_its_data_is_read_and_waits_when_it_was(store: RunStore) -> None:
    reading = Reading()
    checks = Checks(store, reading)
    (run,) = checks.submit([TrainConfig(r=4)], 2)
    assert (run.state.status, run.state.processes) == ("checking", 2)
    until(lambda: checks.progress(run.id) == "Reading the data: 7 rows")
    assert store.get(run.id).alive and store.active() is None, "it holds no device: another may train meanwhile"
    reading.go.set()
    until(lambda: not checks.progress(run.id))
    after = store.get(run.id)
    assert (after.state, after.alive) == (RunState("queued", processes=2), False)
    assert (read_result(after, RESULT) or {})["fatal"] == ""


def test_runs_of_the_same_data_are_checked_once(store: RunStore) -> None:
    reading = Reading()
    reading.go.set()
    checks = Checks(store, reading)
    made = checks.submit([TrainConfig(method="qlora"), TrainConfig(method="lora")], 1)
    until(lambda: [status(store, run) for run in made] == ["queued", "queued"])
    assert len(reading.asked) == 1
    assert all(read_result(run, RESULT) for run in made)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "./other"},
        {"dataset": "./rows.jsonl"},
        {"dataset_config": "de"},
        {"dataset_split": "validation"},
        {"columns": "prompt=a, completion=b"},
        {"max_length": 64},
        {"loss_on": "assistant"},
        {"seed": 1},
        {"eval_rows": 4},
    ],
)
def test_runs_of_other_data_are_checked_each(store: RunStore, other: dict[str, Any]) -> None:
    reading = Reading()
    reading.go.set()
    checks = Checks(store, reading)
    made = checks.submit([TrainConfig(), TrainConfig().changed(**other)], 1)
    until(lambda: [status(store, run) for run in made] == ["queued", "queued"])
    assert len(reading.asked) == 2


@pytest.mark.parametrize(
    ("reading", "error", "refused"),
    [
        (Reading(fatal="rows.jsonl, line 7"), "dataset: rows.jsonl, line 7", True),
        (Reading(error=ConfigError("loss_on", "cannot be used here")), "loss_on: cannot be used here", True),
        (Reading(error=ZeroDivisionError("oh")), "ZeroDivisionError: oh", False),
    ],
)
def test_what_cannot_be_used_ends_it_with_the_reason(
    store: RunStore, reading: Reading, error: str, refused: bool
) -> None:
    reading.go.set()
    (run,) = Checks(store, reading).submit([TrainConfig()], 1)
    until(lambda: store.get(run.id).state.ended)
    state = store.get(run.id).state
    assert (state.status, state.error, state.refused) == ("failed", error, refused)


def test_a_stop_ends_the_check(store: RunStore) -> None:
    reading = Reading()
    checks = Checks(store, reading)
    (run,) = checks.submit([TrainConfig()], 1)
    until(lambda: checks.progress(run.id))
    store.request_stop(run.id)
    until(lambda: not checks.progress(run.id))
    assert (status(store, run), store.get(run.id).alive, store.get(run.id).resumable) == ("stopped", False, True)


def test_checks_that_hang_are_left_when_their_runs_are_stopped_and_do_nothing_when_they_go_on(store: RunStore) -> None:
    arrived, read = threading.Event(), list[int]()

    def reading(config: TrainConfig, halt: Halt) -> Iterator[Step]:
        if config.seed:
            arrived.wait()
        read.append(config.seed)
        yield Step(Progress("8 rows", 1.0), {"fatal": "", "problems": []})

    checks = Checks(store, reading)
    for seed in range(1, 5):
        (run,) = checks.submit([TrainConfig(seed=seed)], 1)
        until(partial(checks.progress, run.id))
        store.request_stop(run.id)
        checks.look()
        if seed < 4:
            store.delete(run.id)
    assert store.get(run.id).alive and checks.at_work, "three are left at most"
    (last,) = checks.submit([TrainConfig(seed=0)], 1)
    assert status(store, last) == "checking"
    arrived.set()
    until(lambda: len(read) == 4 and not checks.at_work and not checks._left)
    checks.look()
    until(lambda: status(store, last) == "queued")
    assert (set(store.names()), status(store, run)) == ({last.id, run.id}, "stopped")
    assert read_result(store.get(run.id), RESULT) is None


def test_a_run_that_is_deleted_while_another_is_checked_does_not_come_back(store: RunStore) -> None:
    reading = Reading()
    checks = Checks(store, reading)
    made = checks.submit([TrainConfig(method="qlora"), TrainConfig(method="lora"), TrainConfig(r=4)], 1)
    until(lambda: any(checks.progress(run.id) for run in made))
    first, second, third = sorted(made, key=lambda run: not checks.progress(run.id))
    store.delete(second.id)
    reading.go.set()
    until(lambda: not checks.at_work)
    assert sorted(store.names()) == sorted([first.id, third.id])
    assert [status(store, run) for run in (first, third)] == ["queued", "queued"]


def test_a_pair_for_which_there_are_too_few_places_is_refused_whole(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs", Limits(stored_runs=2))
    kept, checks = store.create(TrainConfig()), Checks(store, Reading())
    message = (
        rf"^runs: 1 are kept, 2 more are asked for and 2 \(.*\) is the most; delete some, the oldest is {kept.id}$"
    )
    with pytest.raises(TooMany, match=message):
        checks.submit([TrainConfig(method="qlora"), TrainConfig(method="lora")], 1)
    assert store.names() == [kept.id] and not checks.at_work


def test_a_pair_whose_second_run_finds_no_room_is_refused_whole(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(path: Path, state: RunState) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        write_state(path, state)

    monkeypatch.setattr("qlora_demo.runs.write_state", write)
    checks = Checks(store, Reading())
    with pytest.raises(WorkError, match="the disk is full; remove files there"):
        checks.submit([TrainConfig(method="qlora"), TrainConfig(method="lora")], 1)
    assert list(store.root.iterdir()) == [] and not checks.at_work


def test_what_another_app_checks_is_left_to_it_and_taken_up_when_it_is_gone(store: RunStore) -> None:
    run = store.create(TrainConfig(), RunState("checking"))
    other = HeldLock.acquire(run.lock, {})
    assert other is not None
    reading = Reading()
    reading.go.set()
    checks = Checks(store, reading)
    checks.look()
    until(lambda: not checks.at_work)
    assert (status(store, run), reading.asked) == ("checking", [])
    other.release()
    checks.look()
    until(lambda: status(store, run) == "queued")


def test_a_result_that_cannot_be_kept_is_tried_again(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading()
    reading.go.set()
    checks = Checks(store, reading)
    full = [True]

    def write(path: Path, state: RunState) -> None:
        if full:
            raise OSError(28, "No space left on device")
        write_state(path, state)

    monkeypatch.setattr("qlora_demo.checking.write_state", write)
    (run,) = checks.submit([TrainConfig()], 1)
    until(lambda: not checks.at_work)
    assert status(store, run) == "checking"
    full.clear()
    checks.look()
    until(lambda: status(store, run) == "queued")
