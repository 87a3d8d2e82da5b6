"""A thread that goes on: whatever goes wrong in what it does is logged, and done again at the next turn."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from ..errors import DemoError
from . import logs

_TOLD = 100
"""So many different messages are remembered, not to be logged again."""


class Steady:
    """Does things in the background, under a name for the log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._told: deque[str] = deque(maxlen=_TOLD)

    def every(self, seconds: float, work: Callable[[], object]) -> None:
        """Do it now and then, for as long as the app lives; returns at once."""
        threading.Thread(target=self._repeat, args=(seconds, work), name=self.name, daemon=True).start()

    def once(self, work: Callable[[], object]) -> None:
        """Do it once; returns at once."""
        threading.Thread(target=self.attempt, args=(work,), name=self.name, daemon=True).start()

    def attempt(self, work: Callable[[], object]) -> None:
        """Do it here; what goes wrong is logged, the same words once, and with its traceback where it is no error that
        a person is meant to read."""
        try:
            work()
        except Exception as exc:  # noqa: BLE001 - the next turn may go well, and without the thread there is none
            why = f"{type(exc).__name__}: {exc}"
            if why not in self._told:
                self._told.append(why)
                trace = None if isinstance(exc, DemoError) else exc
                logs.event("background.failed", logging.ERROR, trace, what=self.name, why=why)

    def _repeat(self, seconds: float, work: Callable[[], object]) -> None:
        pause = threading.Event()
        while True:
            self.attempt(work)
            pause.wait(seconds)
