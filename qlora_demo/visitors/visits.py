"""What people ask of the app: each thing has a name in the log, and it is known when the last one ended."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from ..system import logs

T = TypeVar("T")


class Visits:
    """How much is being asked for right now, and since when nothing is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._going = 0
        self._last = clock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A person asks for something; it lasts as long as the block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def idle_seconds(self) -> float:
        """Seconds since the last one ended; 0 while one is going."""
        with self._lock:
            return 0.0 if self._going else self._clock() - self._last

    def _count(self, change: int) -> None:
        with self._lock:
            self._going += change
            self._last = self._clock()


VISITS = Visits()
"""Everything that is asked of this process through its page."""


def new_request() -> str:
    """A name for one request in the log."""
    return secrets.token_hex(4)


def each(steps: Generator[T], request: str) -> Generator[T]:
    """The steps of a request, each made under its name: they may be made by threads that change."""
    with closing(steps):
        while True:
            with logs.of(request=request):
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
