"""One permanent thread for everything that touches the models: CUDA graphs are bound to a thread, and one thread
cannot overlap two passes."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import TypeVar

from ..system.halt import Halt

T = TypeVar("T")
_PATIENCE_SECONDS = 0.25
_LOOK_SECONDS = 0.1
_log = logging.getLogger(__name__)


class Worker:
    """One thread that does everything it is asked, in order, for as long as the process lives.

    When nobody asks, it does `idle` work: one bounded piece per call, which says whether there was any.
    """

    def __init__(self, idle: Callable[[], bool] = lambda: False) -> None:
        self._idle = idle
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="models", daemon=True).start()

    def call(self, work: Callable[[], T]) -> T:
        """Do it on the thread; return what it returns or raise what it raises."""
        done: Future[T] = Future()
        self._put(lambda: _settle(done, work))
        return done.result()

    def iterate(self, begin: Callable[[], Generator[T]], halt: Halt) -> Iterator[T]:
        """Run an iterator on the thread and yield its items here; leaving early sets `halt`.  Where that is set while
        the thread is still at something else, nothing is begun and nothing is waited for.

        The thread waits, for a moment at most, until an item is dealt with: what is done with it would otherwise run
        beside the next model pass and into its time.
        """
        items: queue.SimpleQueue[tuple[T, ...]] = queue.SimpleQueue()
        taken = threading.Semaphore(0)
        begun = threading.Event()
        done: Future[None] = Future()

        def pump() -> None:
            begun.set()
            if halt.is_set():
                return
            with closing(begin()) as made:
                for item in made:
                    items.put((item,))
                    taken.acquire(timeout=_PATIENCE_SECONDS)

        def work() -> None:
            _settle(done, pump)
            items.put(())

        self._put(work)
        whole = False
        try:
            if not _begins(begun, halt):
                return
            while item := items.get():
                yield item[0]
                taken.release()
            whole = True
        finally:
            if not whole:
                halt.set()
                taken.release()
        done.result()

    def _put(self, work: Callable[[], None]) -> None:
        """Have it done in the context of who asks: what it logs belongs to the same run and request."""
        context = contextvars.copy_context()
        self._jobs.put(lambda: context.run(work))

    def _work(self) -> None:
        while True:
            if self._jobs.empty() and self._idled():
                continue
            self._jobs.get()()

    def _idled(self) -> bool:
        """Do a bit of what idle time is for; where that fails, the thread goes on with what is asked of it."""
        try:
            return self._idle()
        except Exception:  # noqa: BLE001 - whatever it was, people wait for this thread
            _log.exception("idle work failed")
            return False


def _begins(begun: threading.Event, halt: Halt) -> bool:
    """Wait for something to begin; whether it has before `halt` was set."""
    while not begun.wait(_LOOK_SECONDS):
        if halt.is_set():
            return False
    return True


def _settle(done: Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as exc:  # noqa: BLE001 - handed to the thread that asked, whatever it is
        done.set_exception(exc)
