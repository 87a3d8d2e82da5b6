"""The training process lives on by itself; the locks it inherits say that it does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DeviceBusy, RunError
from qlora_demo.gpu import Lease
from qlora_demo.launcher import Launcher, train_command
from qlora_demo.records import RunState
from qlora_demo.runs import Run, RunStore, write_state

STAND_IN = """
import os, time
import qlora_demo.config
print(os.getcwd(), os.getsid(0) == os.getpid(), "last words", flush=True)
time.sleep(60)
"""
Processes = list[subprocess.Popen[bytes]]


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """A launcher on an empty home."""
    return Launcher(RunStore(tmp_path / "runs"), Lease(tmp_path))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """What the launcher spawned: a stand-in for the training process, which waits to be killed."""
    spawned: Processes = []
    spawn = subprocess.Popen

    def remember(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        spawned.append(spawn(*args, **kwargs))
        return spawned[-1]

    monkeypatch.setattr("qlora_demo.launcher.subprocess.Popen", remember)
    monkeypatch.setattr("qlora_demo.launcher.train_command", lambda run, count: [sys.executable, "-c", STAND_IN])
    yield spawned
    for process in spawned:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill -9, and wait until it is gone."""
    process.kill()
    process.wait()


def log_of(run: Run) -> str:
    """The run's log, once the stand-in has written it."""
    while "\n" not in (text := (run.path / "train.log").read_text("utf-8")):
        time.sleep(0.01)
    return text


def test_a_started_run_holds_its_lock_and_the_device(launcher: Launcher, processes: Processes) -> None:
    run = launcher.start(TrainConfig(r=8))
    assert (run.state.status, run.config) == ("starting", TrainConfig(r=8))
    assert launcher.lease.holder() == f"training {run.id}"
    assert launcher.runs.active() == run


def test_the_process_stands_alone_and_its_words_are_in_the_log(launcher: Launcher, processes: Processes) -> None:
    run = launcher.start(TrainConfig())
    assert log_of(run) == f"{Path.cwd()} True last words\n"


def test_the_process_finds_the_package_from_another_folder(
    launcher: Launcher, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert log_of(launcher.start(TrainConfig())) == f"{tmp_path} True last words\n"


def test_a_second_start_is_refused_with_the_run_that_trains(launcher: Launcher, processes: Processes) -> None:
    run = launcher.start(TrainConfig())
    restarted = Launcher(RunStore(launcher.runs.root), Lease(launcher.lease.path.parent))
    for app in (launcher, restarted):
        with pytest.raises(DeviceBusy, match=f"^device: run {run.id} is training; wait for it or stop it"):
            app.start(TrainConfig())
    assert launcher.runs.names() == [run.id]


def test_a_start_is_refused_while_the_chat_holds_the_device(
    launcher: Launcher, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_demo.gpu._EXIT_SECONDS", 0.0)
    chat = launcher.lease.acquire("chat")
    with pytest.raises(DeviceBusy, match=r"^device: held by chat;"):
        launcher.start(TrainConfig())
    chat.release()
    assert (launcher.runs.names(), processes) == ([], [])


def test_an_app_that_ends_starts_nothing_more(launcher: Launcher, processes: Processes) -> None:
    run = launcher.runs.create(TrainConfig(), RunState("queued"))
    launcher.close()
    for start in (launcher.start_next, lambda: launcher.start(TrainConfig())):
        with pytest.raises(DeviceBusy, match=r"^device: the app is ending; start it again"):
            start()
    assert (launcher.runs.names(), launcher.runs.get(run.id).state.status, processes) == ([run.id], "queued", [])


def test_a_killed_run_reads_as_failed_and_the_device_is_free(launcher: Launcher, processes: Processes) -> None:
    run = launcher.start(TrainConfig())
    log_of(run)
    kill(processes[0])
    state = launcher.runs.get(run.id).state
    assert state.status == "failed"
    assert state.error.endswith("last words")
    assert launcher.lease.holder() == ""
    assert launcher.start(TrainConfig()).state.status == "starting"


def test_a_process_that_cannot_be_spawned_leaves_the_device_free(
    launcher: Launcher, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_demo.launcher.train_command", lambda run, count: ["/nowhere/python"])
    with pytest.raises(FileNotFoundError):
        launcher.start(TrainConfig())
    assert launcher.lease.holder() == ""
    assert [run.state.status for run in launcher.runs.all()] == ["failed"]


def test_the_app_itself_keeps_no_descriptor_of_the_locks(launcher: Launcher, processes: Processes) -> None:
    run = launcher.start(TrainConfig())
    opened = {fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.exists()}
    assert not {run.lock, launcher.lease.path} & opened


def test_a_run_that_begins_as_it_is_taken_out_of_the_queue_finds_the_stop_and_goes_on_without_it(
    launcher: Launcher, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launcher.runs.create(TrainConfig(), RunState("queued"))

    def after_its_start(path: Path, state: RunState) -> None:
        launcher.start_next()
        write_state(path, state)

    monkeypatch.setattr("qlora_demo.runs.write_state", after_its_start)
    launcher.runs.request_stop(run.id)
    monkeypatch.undo()
    assert len(processes) == 1 and (run.path / "stop").exists()
    kill(processes[0])
    monkeypatch.setattr(launcher, "_spawn", lambda *_: None)
    launcher.resume(run.id)
    assert not (run.path / "stop").exists()


def test_a_run_that_was_refused_is_so_no_longer_when_it_is_resumed(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launcher.runs.create(TrainConfig(), RunState("failed", error="dataset: gone", refused=True))
    monkeypatch.setattr(launcher, "start_next", lambda: None)
    assert launcher.resume(run.id).state == RunState("queued")


def test_a_run_that_is_deleted_as_it_begins_does_not_come_back(
    launcher: Launcher, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = launcher.runs.create

    def deleted(config: TrainConfig) -> Run:
        run = create(config)
        launcher.runs.delete(run.id)
        return run

    monkeypatch.setattr(launcher.runs, "create", deleted)
    with pytest.raises(RunError, match="it was deleted meanwhile; choose another"):
        launcher.start(TrainConfig())
    assert (launcher.runs.names(), launcher.lease.holder(), processes) == ([], "", [])


def test_one_process_is_started_as_a_module_on_the_run_directory(launcher: Launcher) -> None:
    run = launcher.runs.create(TrainConfig())
    assert train_command(run, 1) == [sys.executable, "-m", "qlora_demo.ml.train", str(run.path), "--held"]


def test_two_processes_are_started_under_torchrun(launcher: Launcher) -> None:
    run = launcher.runs.create(TrainConfig())
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert train_command(run, 2) == [sys.executable, *torchrun, "-m", "qlora_demo.ml.train", str(run.path), "--held"]
