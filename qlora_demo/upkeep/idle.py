"""Pauses the Space's hardware when nobody has used it for QLORA_DEMO_PAUSE_MINUTES: it bills by the minute.

Never while a run waits or goes, a job works, a benchmark measures, an answer or anything else that was asked for is
under way, or something is still to be fetched or sent.  A paused Space is started again by its owner.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from ..errors import DemoError
from ..records import Note
from ..services import Services
from ..system import logs
from ..system.steady import Steady
from ..visitors.visits import VISITS, Visits

_SECONDS = 20.0


class Pauser:
    """Looks every twenty seconds.  ``pending``: whether something else is still to be done."""

    def __init__(
        self,
        services: Services,
        pending: Callable[[], bool],
        visits: Visits = VISITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.services = services
        self.trouble = ""
        self._pending = pending
        self._visits = visits
        self._clock = clock
        self._worked = clock()

    def start(self) -> None:
        Steady("pause").every(_SECONDS, self.look)

    def look(self) -> None:
        """Pause the Space if it has been idle for long enough."""
        if self._busy():
            self._worked = self._clock()
        elif self._idle_seconds() >= 60 * self.services.settings.pause_minutes:
            self._pause()

    def note(self) -> Note | None:
        """What there is to say: why it could not be paused."""
        return Note(f"pause: {self.trouble}", bad=True) if self.trouble else None

    def _busy(self) -> bool:
        runs, lease = self.services.runs, self.services.lease
        at_work = runs.active() is not None or bool(runs.waiting("checking", "queued")) or self.services.jobs.going
        at_work = at_work or lease.is_held_for("benchmark")
        return at_work or not self._visits.idle_seconds() or self._pending()

    def _idle_seconds(self) -> float:
        return min(self._clock() - self._worked, self._visits.idle_seconds())

    def _pause(self) -> None:
        settings = self.services.settings
        logs.event("space.paused", idle_minutes=round(self._idle_seconds() / 60))
        try:
            self.services.hub.pause(settings.space, token=os.environ.get("HF_TOKEN", ""))
        except DemoError as exc:
            logs.event("space.not_paused", logging.ERROR, why=str(exc))
            self.trouble = str(exc)
        self._worked = self._clock()
