"""Runs that wait for the device, as they are once their data was checked; and waiting for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from qlora_demo.config import TrainConfig
from qlora_demo.errors import DeviceBusy
from qlora_demo.records import RunState
from qlora_demo.runs import Run
from qlora_demo.services import Services


def submit(services: Services, config: TrainConfig) -> Run:
    """A run that starts when the device is free, now or after those that wait already."""
    run = services.runs.create(config, RunState("queued"))
    with contextlib.suppress(DeviceBusy):
        services.launcher.start_next()
    return services.runs.get(run.id)


def until(what: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)
