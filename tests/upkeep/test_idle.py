"""A Space that nobody uses is paused, and never while something is at work: a clock is turned by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.hub import HuggingFaceHub
from qlora_demo.records import Progress, RunState, Status, Step
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from qlora_demo.system.locks import HeldLock
from qlora_demo.upkeep.idle import Pauser
from qlora_demo.visitors.visits import Visits
from tests.hub_server import OWNERS_TOKEN, HubServer

SPACE, MINUTES = "ada/demo", 10


@dataclass
class Space:
    """A Space with a clock; `after` lets minutes pass, with a look in each."""

    services: Services
    hub: HubServer
    now: float = 0.0
    pending: bool = False

    def __post_init__(self) -> None:
        self.visits = Visits(lambda: self.now)
        self.pauser = Pauser(self.services, lambda: self.pending, self.visits, lambda: self.now)

    def after(self, minutes: int) -> list[str]:
        for _ in range(minutes):
            self.now += 60
            self.pauser.look()
        return self.hub.paused


@pytest.fixture
def space(services: Services, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setenv("HF_TOKEN", OWNERS_TOKEN)
    settings = replace(services.settings, space=SPACE, pause_minutes=MINUTES)
    return Space(replace(services, settings=settings, hub=HuggingFaceHub(hub_server.url)), hub_server)


def test_it_is_paused_after_the_minutes_without_use(space: Space) -> None:
    assert space.after(MINUTES - 1) == []
    assert space.after(1) == [SPACE]
    assert space.pauser.note() is None


def test_a_visit_begins_the_minutes_anew_and_none_pass_while_it_lasts(space: Space) -> None:
    space.after(MINUTES - 1)
    with space.visits.one():
        assert space.after(5 * MINUTES) == []
    assert space.after(MINUTES - 1) == []
    assert space.after(1) == [SPACE]


@pytest.mark.parametrize("status", ["queued", "running"])
def test_a_run_that_waits_or_goes_holds_it(space: Space, status: Status) -> None:
    run = space.services.runs.create(TrainConfig())
    write_state(run.path, RunState(status=status))
    lock = HeldLock.acquire(run.lock, {})
    assert lock is not None
    assert space.after(5 * MINUTES) == []
    write_state(run.path, RunState(status="finished"))
    lock.release()
    assert space.after(MINUTES - 1) == []
    assert space.after(1) == [SPACE]


def test_a_job_holds_it(space: Space) -> None:
    end, jobs = threading.Event(), space.services.jobs

    def work(halt: Halt) -> Iterator[Step]:
        yield Step(Progress("half", 0.5))
        end.wait()

    jobs.start("evaluation", space.services.runs.create(TrainConfig()).id, work)
    assert space.after(5 * MINUTES) == []
    end.set()
    until(lambda: not jobs.going)
    write_state(space.services.runs.all()[0].path, RunState(status="finished"))
    assert space.after(MINUTES - 1) == []
    assert space.after(1) == [SPACE]


def test_a_benchmark_holds_it_and_models_in_memory_do_not(space: Space) -> None:
    held = space.services.lease.acquire("benchmark", "of ranks")
    assert space.after(5 * MINUTES) == []
    held.annotate({"purpose": "chat", "detail": "of a run"})
    assert space.after(MINUTES) == [SPACE]
    held.release()


def test_what_is_still_to_be_sent_holds_it(space: Space) -> None:
    space.pending = True
    assert space.after(5 * MINUTES) == []
    space.pending = False
    assert space.after(MINUTES) == [SPACE]


def test_a_hub_that_refuses_is_told_and_asked_again_after_the_same_time(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    space.after(2 * MINUTES - 1)
    assert len(space.hub.requests) == 1
    note = space.pauser.note()
    assert note is not None and note.bad and "the token may not write there" in note.text
    assert "somebody" not in note.text
    space.after(1)
    assert len(space.hub.requests) == 2


def until(condition: Callable[[], bool]) -> None:
    """Wait for a thread."""
    while not condition():
        threading.Event().wait(0.005)
