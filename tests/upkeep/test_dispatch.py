"""The queue: what waits begins as soon as the device can be had for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.engine import OnDemand
from qlora_demo.errors import DeviceBusy
from qlora_demo.jobs import Job
from qlora_demo.records import Progress, RunState
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.upkeep.dispatch import Dispatcher


@pytest.fixture
def queued(services: Services) -> Run:
    """A run that waits."""
    return services.runs.create(TrainConfig(), RunState("queued"))


def test_a_job_that_leaves_the_models_alone_is_not_waited_for(
    services: Services, queued: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(services.launcher, "start_next", lambda: started.append(1))
    for models in (True, False):
        services.jobs.last = Job("push", queued.id, Progress("at work"), models=models)
        Dispatcher(services).look()
        assert started == ([] if models else [1])


def test_whoever_waits_for_an_answer_does_not_take_what_was_freed_for_a_run(
    services: Services, queued: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[str] = []
    monkeypatch.setattr(services.launcher, "_spawn", lambda run, *_: spawned.append(run.id))
    chat = services.lease.acquire("chat", "of one visitor")

    def release() -> None:
        chat.release()
        with pytest.raises(DeviceBusy, match="device: kept for training, which is about to begin"):
            services.lease.acquire("chat", "of the next visitor")

    made: Any = SimpleNamespace(resident=lambda: ("base",), release=release)
    engine = OnDemand(lambda: made)
    engine()
    Dispatcher(replace(services, engine=engine)).look()
    assert spawned == [queued.id]
    services.lease.acquire("chat", "once more").release()
