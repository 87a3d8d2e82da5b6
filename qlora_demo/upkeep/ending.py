"""The end of a container, which takes all that runs in it along: only its first process is asked to end.

Where the app is that process, training would be killed with it, so runs are asked to stop and save, and waited for as
long as the container is left alive (`docker stop` waits ten seconds, or what its `-t` says).  Then what ended is copied
to the hub, where that was asked for.  Anywhere else training outlives the app, and is left alone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from ..errors import DemoError
from ..runs import Run
from ..services import Services
from ..system import logs
from ..system.steady import Steady
from .syncing import Syncer

_PATIENCE_SECONDS = 600.0
_LOOK_SECONDS = 0.1
_COPY_SECONDS = 60.0


@contextmanager
def saving_runs(services: Services) -> Iterator[None]:
    """Around the app's life: where it is a container's first process, what trains is stopped and saved at its end."""
    if os.getpid() != 1:
        yield
        return

    def end(*_: Any) -> None:
        _stop(services)  # at once: closing the page takes seconds, and there may be ten
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        until = time.monotonic() + _PATIENCE_SECONDS
        while _stop(services) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        if services.settings.sync_repo:
            _copy(services)


def _copy(services: Services) -> None:
    """Send what no copy was made of yet, the newest run first; a hub that does not answer is not waited for."""
    look = (Syncer(services).look,)
    copying = threading.Thread(target=Steady("last sync").attempt, args=look, daemon=True)
    copying.start()
    copying.join(_COPY_SECONDS)


def _stop(services: Services) -> list[Run]:
    """Have no run begin, and those that train in this container, and in no other on the same home, stop and save; those
    whose process is there still."""
    services.launcher.close()
    words = {word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()}
    there = [run for run in services.runs.all() if str(run.path) in words]
    for run in there:
        if not run.state.ended and not (run.path / "stop").exists():
            with suppress(DemoError):  # it ended meanwhile, or the disk is full
                services.runs.request_stop(run.id)
                logs.event("run.stopping", run=run.id)
    return there
