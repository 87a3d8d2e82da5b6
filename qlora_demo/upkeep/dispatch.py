"""Has what was started checked, and starts what waits when the device is free; the queue is in the run directories."""

from __future__ import annotations

import logging

from ..errors import DemoError
from ..services import Services
from ..system import logs
from ..system.steady import Steady

_SECONDS = 2.0


class Dispatcher:
    """Looks every two seconds, for as long as the app lives."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.trouble = ""

    def start(self) -> None:
        Steady("queue").every(_SECONDS, self.look)

    def look(self) -> None:
        """Check what waits for it, and start the next run if nothing trains; chat models that are idle in memory make
        room for it."""
        runs = self.services.runs
        try:
            self.services.checks.look()
            waiting = runs.waiting("queued")
            beginning = any(run.alive for run in waiting)  # its process is there and has not said so yet
            if not waiting or beginning or runs.active() is not None or self.services.jobs.on_models:
                return
            with self.services.lease.kept_for("training"):
                self.services.engine.release()
                self.services.launcher.start_next()
            self.trouble = ""
        except (DemoError, OSError) as exc:  # a full disk, say: the next look may find room
            if str(exc) != self.trouble:
                logs.event("queue.waits", logging.WARNING, why=str(exc))
            self.trouble = str(exc)
