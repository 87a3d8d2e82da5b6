"""Work that goes on when the tab that started it is closed: evaluation, fidelity, prompt sets, merges, exports.

What it found so far is kept in the run's folder as ``results/KIND.json``, also when it is stopped or fails.
"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .errors import DemoError, DeviceBusy, RunError
from .records import Progress, Step
from .runs import JOB_LOCK, Run, RunStore
from .system import logs
from .system.disk import read_object, write_atomically, writing
from .system.halt import Halt
from .system.locks import HeldLock

Work = Callable[[Halt], Iterator[Step]]
_SAVE_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """One piece of work; ``error`` is what ended it, where that was not its end or a stop; ``models``: it works with
    them, so that nobody else can meanwhile."""

    kind: str
    run: str
    progress: Progress
    models: bool = True
    going: bool = True
    error: str = ""


class Jobs:
    """One job at a time; the last one stays to be looked at."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._halt = Halt()
        self.last: Job | None = None

    @property
    def going(self) -> bool:
        """Whether a job is at work."""
        return self.last is not None and self.last.going

    @property
    def on_models(self) -> Job | None:
        """The job that works with the models, if one does."""
        job = self.last
        return job if job is not None and job.going and job.models else None

    def require_models(self) -> None:
        """Raises `DeviceBusy` while a job works with the models: who asks them something would wait for its end."""
        if job := self.on_models:
            share = "" if job.progress.fraction is None else f", {job.progress.fraction:.0%}"
            raise DeviceBusy(f"device: {job.kind} of {job.run} is at work{share}; wait or stop it on the Evaluate tab")

    def start(self, kind: str, run: str, work: Work, *, models: bool = True) -> None:
        """Begin in the background; refused while another job is at work, or where there is no such run."""
        found = self._runs.get(run)
        with self._lock:
            if self.last is not None and self.going:
                raise DeviceBusy(f"{kind}: {self.last.kind} of {self.last.run} is at work; wait for it or stop it")
            self._halt = Halt()
            self.last = Job(kind, run, Progress("starting", 0.0), models)
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._do, found, work, self._halt), daemon=True).start()

    def stop(self) -> None:
        """Ask for the end after the step it is in."""
        self._halt.set()

    def _do(self, run: Run, work: Work, halt: Halt) -> None:
        assert self.last is not None
        with logs.of(run=run.id):
            logs.event("job.started", kind=self.last.kind)
            self._work(run, work, halt)
            how = "failed" if self.last.error else "stopped" if halt.is_set() else "finished"
            logs.event("job.ended", kind=self.last.kind, how=how)

    def _work(self, run: Run, work: Work, halt: Halt) -> None:
        error = ""
        try:
            with at_work(run):
                self._go_through(run, work, halt)
        except DemoError as exc:
            error = str(exc)
        except Exception as exc:  # noqa: BLE001 - shown to the person; the thread has nobody else to tell
            error = f"{type(exc).__name__}: {exc}"
        finally:
            self._note(going=False, error=error)

    def _go_through(self, run: Run, work: Work, halt: Halt) -> None:
        result, saved = dict[str, Any](), 0.0
        for step in work(halt):
            result = step.result or result
            self._note(progress=step.progress)
            if step.result and time.monotonic() - saved > _SAVE_SECONDS:
                self._keep(run, result, complete=False)
                saved = time.monotonic()
        if result:
            self._keep(run, result, complete=not halt.is_set())

    def _keep(self, run: Run, result: dict[str, Any], *, complete: bool) -> None:
        assert self.last is not None
        save_result(run, self.last.kind, result, complete=complete)

    def _note(self, **changes: Any) -> None:
        assert self.last is not None
        self.last = replace(self.last, **changes)


@contextmanager
def at_work(run: Run) -> Iterator[None]:
    """Around a job, whose run nobody deletes meanwhile.  Raises `RunError` where somebody has."""
    lock = HeldLock.acquire(run.path / JOB_LOCK, {}, shared=True)
    if lock is None:
        raise RunError(f"run {run.id}: it is being deleted; choose another run")
    try:
        yield
    finally:
        lock.release()


def save_result(run: Run, kind: str, result: dict[str, Any], *, complete: bool = True) -> None:
    """Replace a run's result of one kind, with the time and whether it is all that was asked for."""
    told = result | {"complete": complete, "time": time.time()}
    folder = run.path / "results"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{kind}.json", json.dumps(told, ensure_ascii=False))


def told_result(run: Run, kind: str, since: Callable[[str], float]) -> dict[str, Any] | None:
    """A run's result, which names as ``outdated`` the columns whose adapter another has taken the place of since; see
    `RunStore.adapter_since`."""
    result = read_result(run, kind)
    if result is None:
        return None
    names = [*result.get("variants", {}), *result.get("columns", [])]
    outdated = [name for name in names if since(name) > result.get("time", 0.0)]
    return result | ({"outdated": outdated} if outdated else {})


def read_result(run: Run, kind: str) -> dict[str, Any] | None:
    """A run's result of one kind; None where there is none that can be read."""
    return read_object(run.path / "results" / f"{kind}.json") or None
