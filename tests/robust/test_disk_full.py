"""A disk that is really full: a clear message, nothing half-written that looks whole, and on when there is room."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.errors import DemoError, WorkError
from qlora_demo.jobs import Jobs, read_result, save_result
from qlora_demo.ml import train as trainer
from qlora_demo.ml.train import EndState, train
from qlora_demo.records import Answer, ExportRequest, Progress, RunState, Step, TrainMetrics
from qlora_demo.results.history import write_note
from qlora_demo.results.report import save
from qlora_demo.results.reporting import gather, keep_conversation
from qlora_demo.results.votes import NewComparison
from qlora_demo.runs import CHECKPOINT_MARK, CHECKPOINTS, Run, append_metrics, cut_metrics, read_metrics, write_state
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.disk import copy_whole, folder_bytes
from qlora_demo.system.halt import Halt
from qlora_demo.upkeep.dispatch import Dispatcher
from tests.abandoned import abandoned
from tests.conftest import Disk
from tests.ml.test_train import TINY
from tests.ml.test_variants import finished_run
from tests.queueing import submit

ANSWERS = {"base": {"text": "b" * 2000}, "adapter": {"text": "a"}}
NEW = NewComparison("run", "", "prompt", {}, ("base", "adapter"), ANSWERS)


@pytest.fixture
def home(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home on a disk of 48 MiB."""
    folder = disk(48 << 10)
    monkeypatch.setenv("QLORA_DEMO_HOME", str(folder))
    return folder


@pytest.fixture
def run(services: Services) -> Run:
    run = services.runs.create(TrainConfig())
    append_metrics(run.path, TrainMetrics(1, 1.0, loss=2.0))
    write_state(run.path, RunState("finished"))
    return services.runs.get(run.id)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all the room but so many bytes; what takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(folder).free - leave
        os.posix_fallocate(file.fileno(), 0, free)
    return ballast


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; locks and a database's own side files, which come and go, left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not re.search("sqlite3-|lock$", path.name)]
    return {str(path): path.read_bytes() for path in files}


def writes(services: Services, run: Run, source: Path) -> dict[str, Callable[[], object]]:
    """Everything that a person can do which writes."""
    answer = Answer("base", text="x" * 5000)
    return {
        "a run": lambda: services.runs.create(TrainConfig()),
        "a benchmark": lambda: abandoned(services.benchmarks, BenchmarkConfig(), TrainConfig(model="shape:tiny")),
        "a queued run": lambda: submit(services, TrainConfig()),
        "a note": lambda: write_note(run, "n" * 1900, "a, b"),
        "a result": lambda: save_result(run, "evaluation", {"text": "x" * 10_000}),
        "a conversation": lambda: keep_conversation(run, "", "prompt", [answer], {}),
        "a comparison": lambda: services.votes.add(NEW),
        "a report": lambda: save(gather(services.runs, services.votes, run), run.path / "report"),
        "an upload": lambda: copy_whole(source, services.settings.uploads / "rows.jsonl"),
        "a step": lambda: append_metrics(run.path, TrainMetrics(2, 1.0, loss=2.0)),
        "a state": lambda: write_state(run.path, RunState("stopped", error="x" * 5000)),
    }


WRITES = (
    "a run",
    "a benchmark",
    "a note",
    "a result",
    "a conversation",
    "a comparison",
    "a report",
    "an upload",
    "a step",
    "a state",
)


@pytest.mark.parametrize("what", WRITES)
def test_what_finds_no_room_says_where_and_leaves_everything_as_it_was(
    services: Services, run: Run, home: Path, what: str, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"x" * 100_000)
    services.votes.add(NEW)
    work = writes(services, run, source)[what]
    ballast = fill(home)
    before, names = contents(home), (services.runs.names(), services.benchmarks.names())
    with pytest.raises(WorkError) as error:
        for _ in range(500):  # a database or a page of the disk may have some room left of its own
            work()
    message = str(error.value)
    assert str(home) in message and "\n" not in message
    assert "the disk is full" in message or "free disk space" in message
    if what == "a step":  # of which a part may have found room: it is no line
        assert {line.step for line in read_metrics(run.path)[0]} <= {1, 2}
    elif what != "a comparison":
        assert (contents(home), (services.runs.names(), services.benchmarks.names())) == (before, names)
    ballast.unlink()
    if what == "a comparison":
        assert check(home / "votes.sqlite3") == "ok"
    cut_metrics(run.path, 10)
    work()
    assert services.runs.get(run.id) in services.runs.all()


def check(path: Path) -> str:
    """What SQLite says of its own file."""
    with sqlite3.connect(path) as database:
        return str(database.execute("PRAGMA integrity_check").fetchone()[0])


def test_a_vote_that_finds_no_room_is_not_counted_and_can_be_given_again(services: Services, home: Path) -> None:
    names = [services.votes.add(NEW) for _ in range(200)]
    ballast = fill(home)
    given = 0
    with pytest.raises(WorkError, match=r"votes\.sqlite3: .*the disk is full"):
        for name in names:
            services.votes.vote(name, "base")
            given += 1
    ballast.unlink()
    assert services.votes.count("run") == given
    services.votes.vote(names[given], "base")
    assert services.votes.count("run") == given + 1
    assert check(home / "votes.sqlite3") == "ok"


def test_a_line_that_was_cut_short_swallows_no_other(run: Run) -> None:
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "time": 1')
    cut_metrics(run.path, 1)
    append_metrics(run.path, TrainMetrics(2, 2.0, loss=1.0))
    assert [line.step for line in read_metrics(run.path)[0]] == [1, 2]


def test_a_full_disk_keeps_nobody_from_the_device_and_the_queue_goes_on(
    services: Services, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[str] = []
    monkeypatch.setattr(services.launcher, "_spawn", lambda run, *_: spawned.append(run.id))
    held = services.lease.acquire("training", "elsewhere")
    waiting = submit(services, TrainConfig())
    held.release()
    dispatcher = Dispatcher(services)
    ballast = fill(home)
    services.lease.acquire("chat").release()
    dispatcher.look()
    assert "the disk is full" in dispatcher.trouble
    assert (spawned, services.runs.get(waiting.id).state.status) == ([], "queued")
    assert services.lease.holder() == ""
    ballast.unlink()
    dispatcher.look()
    assert (spawned, dispatcher.trouble) == ([waiting.id], "")


def test_a_job_that_finds_no_room_for_its_result_says_so_and_the_next_goes_on(run: Run, home: Path) -> None:
    save_result(run, "evaluation", {"splits": {}})
    jobs, ended = Jobs(services_runs(home)), threading.Event()

    def work(_: Halt) -> Iterator[Step]:
        yield Step(Progress("done", 1.0), {"text": "x" * 100_000})

    ballast = fill(home)
    for expected in (True, False):
        jobs.start("evaluation", run.id, work)
        while jobs.going:
            ended.wait(0.01)
        assert jobs.last is not None and ("the disk is full" in jobs.last.error) == expected
        found = read_result(run, "evaluation")
        assert found is not None and ("splits" in found) == expected
        ballast.unlink(missing_ok=True)


def services_runs(home: Path) -> Any:
    return build_services(Settings(home)).runs


@pytest.mark.parametrize("room_kib", [60, 200])
def test_a_checkpoint_that_finds_no_room_is_gone_and_the_run_goes_on_from_the_last_whole_one(
    services: Services, home: Path, tiny_model: Path, chat_file: Path, room_kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY | {"max_steps": 8, "save_steps": 2})
    run = services.runs.create(config)
    ballast: list[Path] = []
    append = append_metrics

    def fills(path: Path, metrics: TrainMetrics) -> None:
        append(path, metrics)
        if metrics.step == 3 and not ballast:
            ballast.append(fill(home, leave=room_kib << 10))

    with monkeypatch.context() as patch:
        patch.setattr("qlora_demo.ml.reporter.append_metrics", fills)
        with pytest.raises(SystemExit), EndState(run.path):
            train(run.path, config, services.settings)
    state = services.runs.get(run.id).state
    assert state.status == "failed"
    last = services.runs.get(run.id).resumable_from
    assert last in (2, 4)
    assert state.error == f"{run.path}: the disk is full; remove files there, then resume the run from step {last}"
    left = [folder for folder in (run.path / CHECKPOINTS).iterdir() if folder.is_dir()]
    assert left and all((folder / CHECKPOINT_MARK).is_file() for folder in left)
    assert not list(run.path.glob(".*"))
    ballast[0].unlink()
    train(run.path, config, services.settings)
    run = services.runs.get(run.id)
    assert (run.state.status, run.has_adapter) == ("finished", True)
    assert [line.step for line in services.runs.metrics(run.id) if line.loss is not None] == list(range(1, 9))


def test_an_adapter_that_finds_no_room_is_not_there_and_the_run_can_go_on(
    services: Services, home: Path, tiny_model: Path, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY | {"max_steps": 3, "save_steps": 2})
    run = services.runs.create(config)
    save = trainer._save_adapter
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_save_adapter", lambda *args: (fill(home, 8 << 10), save(*args)))
        with pytest.raises(SystemExit), EndState(run.path):
            train(run.path, config, services.settings)
    run = services.runs.get(run.id)
    assert (run.state.status, run.has_adapter, run.resumable_from) == ("failed", False, 2)
    assert "the disk is full" in run.state.error
    (home / "ballast").unlink()
    train(run.path, config, services.settings)
    assert services.runs.get(run.id).has_adapter


@pytest.mark.parametrize("what", ["adapter", "merged", "merged-4bit"])
def test_an_export_that_finds_no_room_leaves_nothing_and_can_be_made_again(
    services: Services, home: Path, tiny_model: Path, disk: Disk, what: Any
) -> None:
    run = finished_run(services, tiny_model, "qlora")
    (run.path / "heldout").mkdir()
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (run.path / "heldout" / "test.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    whole = {"adapter": folder_bytes(run.adapter), "merged": folder_bytes(tiny_model)}.get(
        what, folder_bytes(tiny_model)
    )
    small = disk(whole // 1024 - 4)
    with pytest.raises(WorkError, match=r"the disk is full and nothing was kept|needs .* there and .* are free"):
        list(services.engine().export(ExportRequest(run.id, what, None, small / "out"), Halt()))
    assert list(small.iterdir()) == []
    *_, last = services.engine().export(ExportRequest(run.id, what, None, home / "out"), Halt())
    assert Path(last.result["path"]).is_dir()


def test_a_death_on_a_full_disk_is_told_as_one(services: Services, home: Path, run: Run) -> None:
    write_state(run.path, RunState("running"))
    fill(home)
    assert "ended without reporting an error; its disk is full" in services.runs.get(run.id).state.error
    with pytest.raises(DemoError):
        services.runs.create(TrainConfig())
