"""Two apps on one home share it: one trains at a time, one answers at a time, and no write of either is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_demo.errors import DeviceBusy, RunError, WorkError
from qlora_demo.gpu import Lease
from qlora_demo.jobs import read_result
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.system.disk import draft_folder
from tests.queueing import submit

pytestmark = pytest.mark.processes

APP = """
import sys, time
from pathlib import Path
from qlora_demo import launcher
from qlora_demo.compose import build_services
from qlora_demo.upkeep.dispatch import Dispatcher
from qlora_demo.records import Answer
from qlora_demo.results.reporting import keep_conversation
from qlora_demo.settings import Settings
from qlora_demo.results.votes import NewComparison
name, home = sys.argv[1], Path(sys.argv[2])
services = build_services(Settings(home))
launcher.train_command = lambda run, _: [sys.executable, "-c", TRAINER, str(run.path), name]
TRAINER = '''
import sys, time
from dataclasses import replace
from pathlib import Path
from qlora_demo.runs import read_state, write_state
path = Path(sys.argv[1])
with (path.parent.parent / "began").open("a") as log:
    log.write(f"+ {path.name} {sys.argv[2]}\\\\n")
time.sleep(0.2)
with (path.parent.parent / "began").open("a") as log:
    log.write(f"- {path.name}\\\\n")
write_state(path, replace(read_state(path), status="finished"))
'''
(home / f"ready-{name}").touch()
while not (home / "go").exists():
    time.sleep(0.001)
dispatcher, kept = Dispatcher(services), services.runs.names()[-1]
for number in range(60):
    answers = {"base": {"text": name}, "adapter": {"text": name}}
    voted = services.votes.add(NewComparison("run", "", f"{name} {number}", {}, ("base", "adapter"), answers))
    services.votes.vote(voted, "base")
    keep_conversation(services.runs.get(kept), "", f"{name} {number}", [Answer("base", text=name)], {})
    dispatcher.look()
while services.runs.waiting("queued") or services.runs.active():
    dispatcher.look()
"""


@pytest.fixture
def apps(home: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes, each with its own services, dispatcher and visitors on one home; trainers are stand-ins."""
    started = [subprocess.Popen([sys.executable, "-c", APP, name, str(home)]) for name in "ab"]
    while not all((home / f"ready-{name}").exists() for name in "ab"):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_two_apps_share_one_home(
    services: Services, home: Path, monkeypatch: pytest.MonkeyPatch, apps: list[subprocess.Popen[bytes]]
) -> None:
    from qlora_demo.config import TrainConfig

    kept = services.runs.create(TrainConfig())
    write_state(kept.path, RunState("finished"))
    held = services.lease.acquire("training", "the test")
    time.sleep(1.1)  # ids are in seconds: the one that is kept is the oldest
    waiting = [submit(services, TrainConfig()).id for _ in range(4)]
    held.release()
    (home / "go").touch()
    assert [process.wait(120) for process in apps] == [0, 0]
    events = [line.split() for line in (home / "began").read_text("utf-8").splitlines()]
    assert sorted(one[1] for one in events if one[0] == "+") == sorted(waiting)
    assert [one[0] for one in events] == ["+", "-"] * 4
    assert {services.runs.get(name).state.status for name in waiting} == {"finished"}
    said = {f"{name} {number}" for name in "ab" for number in range(60)}
    assert services.votes.tally("run").votes == len(said)
    conversations = read_result(kept, "conversations")
    assert conversations is not None and {one["prompt"] for one in conversations["conversations"]} == said


def test_the_second_app_s_answers_wait_for_the_first_one_s_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.gpu._EXIT_SECONDS", 0.1)
    ours, theirs = Lease(home), Lease(home)
    held = ours.acquire("chat", "of run one")
    with pytest.raises(DeviceBusy, match=r"^device: held by chat of run one;"):
        theirs.acquire("chat")
    held.release()
    theirs.acquire("chat").release()


def test_a_run_that_the_other_app_has_begun_is_not_deleted_or_taken_from_the_queue(services: Services) -> None:
    from qlora_demo.config import TrainConfig
    from qlora_demo.system.locks import HeldLock

    run = services.runs.create(TrainConfig())
    lock = HeldLock.acquire(run.lock, {})
    assert lock is not None
    write_state(run.path, RunState("running"))
    with pytest.raises(RunError, match="still running; stop it first"):
        services.runs.delete(run.id)
    services.runs.request_stop(run.id)
    assert (run.path / "stop").exists() and services.runs.get(run.id).state.status == "running"
    lock.release()


def test_a_folder_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with draft_folder(out) as draft:
        (draft / "half").touch()
        script = f"""
from pathlib import Path
from qlora_demo.system.disk import draft_folder
from tests.queueing import submit
with draft_folder(Path({str(out)!r})) as draft:
    (draft / "theirs").touch()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "somebody else is writing it now" in done.stderr
        with pytest.raises(WorkError, match="somebody else is writing it now"), draft_folder(out):
            pytest.fail("the block ran")
        assert (draft / "half").exists()
    assert [path.name for path in out.iterdir()] == ["half"]
