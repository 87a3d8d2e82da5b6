"""A container's end stops and saves its runs; anywhere else they outlive the app.  Trainers are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.system.locks import HeldLock
from tests.calls import free_port
from tests.queueing import until

pytestmark = pytest.mark.processes

APP = """
import sys
from qlora_demo import launcher
from qlora_demo.upkeep import dispatch
from pathlib import Path
from qlora_demo.cli import main
from qlora_demo.hub import HuggingFaceHub
dispatch._SECONDS = 0.01
HuggingFaceHub.sync = lambda self, files, repo, *, token: Path(repo).write_text("\\n".join(files)) and len(files)
launcher.train_command = lambda run, _: [sys.executable, "-c", TRAINER, str(run.path)]
TRAINER = '''
import sys, time
from dataclasses import replace
from pathlib import Path
from qlora_demo.runs import read_state, write_state
path = Path(sys.argv[1])
write_state(path, replace(read_state(path), status="running"))
while not (path / "stop").exists():
    time.sleep(0.02)
time.sleep(1)
write_state(path, replace(read_state(path), status="stopped"))
'''
sys.exit(main(["serve"]))
"""
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture
def first(request: pytest.FixtureRequest) -> bool:
    """Whether the app is the first process of a container, which takes root and a kernel that lets it."""
    if request.param and subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this environment may not make a namespace of processes")
    return bool(request.param)


@pytest.fixture
def app(services: Services, tmp_path: Path, first: bool) -> Iterator[psutil.Process]:
    """An app that answers, on a home with two queued runs of which it has begun the first."""
    (services.settings.models / SMOLLM2.name).mkdir(parents=True)
    for _ in range(2):
        services.runs.create(TrainConfig(), RunState("queued"))
    port = free_port()
    environ = os.environ | {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    environ |= {"QLORA_DEMO_SYNC_REPO": str(tmp_path / "copied")}
    command = [*(NAMESPACE if first else []), sys.executable, "-c", APP]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environ, stdout=log, stderr=log) as process,
    ):
        until(lambda: trains(services) and answers(port))
        made = psutil.Process(process.pid)
        yield made.children()[0] if first else made
        process.kill()


def trains(services: Services) -> bool:
    return any(run.state.status == "running" for run in services.runs.all())


def answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.parametrize("first", [True], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_container_saves_what_trains_copies_it_and_begins_nothing(
    services: Services, app: psutil.Process, how: signal.Signals, tmp_path: Path
) -> None:
    run = services.runs.active()
    assert run is not None
    app.send_signal(how)
    app.wait(60)
    assert services.runs.get(run.id).state.status == "stopped"
    assert [one.state.status for one in services.runs.all() if one.id != run.id] == ["queued"]
    assert {name.split("/")[1] for name in (tmp_path / "copied").read_text("utf-8").splitlines()} == {run.id}


@pytest.mark.parametrize("first", [True], indirect=True)
def test_what_another_container_trains_on_the_same_home_goes_on(services: Services, app: psutil.Process) -> None:
    run = services.runs.create(TrainConfig())
    lock = HeldLock.acquire(run.lock, {})
    assert lock is not None
    write_state(run.path, RunState("running"))
    app.send_signal(signal.SIGTERM)
    app.wait(60)
    assert services.runs.get(run.id).state.status == "running" and not (run.path / "stop").exists()
    lock.release()


@pytest.mark.parametrize("first", [False], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_anywhere_else_training_outlives_the_app(services: Services, app: psutil.Process, how: signal.Signals) -> None:
    run = services.runs.active()
    assert run is not None
    app.send_signal(how)
    app.wait(60)
    run = services.runs.get(run.id)
    assert (run.state.status, run.alive, (run.path / "stop").exists()) == ("running", True, False)
    services.runs.request_stop(run.id)
    until(lambda: not services.runs.get(run.id).alive)
