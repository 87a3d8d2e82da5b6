"""Between Start and the queue: a run's data is read as training would, for what waits must not fail hours later.

It goes on when the page that started it is closed, and whichever app looks next takes up what a killed one left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .config import TrainConfig
from .errors import DataError, DemoError, RequestError, RunError
from .jobs import save_result
from .records import RunState, Step
from .runs import Run, RunStore, write_state
from .system import logs
from .system.halt import Halt
from .system.locks import HeldLock
from .system.steady import Steady

Preflight = Callable[[TrainConfig, Halt], Iterator[Step]]
RESULT = "preflight"
"""What the result is kept as in the run's folder."""
_MOST_LEFT = 3
"""So many threads at most are left at the data of runs that were stopped."""


@dataclass
class _Sitting:
    """One thread's way through the runs that wait for their check; ``run``: the one it is at, while it has its lock."""

    run: str = ""
    lock: HeldLock | None = None


class Checks:
    """One check at a time.  One whose run was stopped is left to itself: what it waits for, a download say, may take
    long, and it does nothing when that comes."""

    def __init__(self, runs: RunStore, preflight: Preflight) -> None:
        self._runs = runs
        self._preflight = preflight
        self._changing = threading.Lock()
        self._now: _Sitting | None = None
        self._left = 0
        self._progress: dict[str, str] = {}
        self._steady = Steady("checks")

    def submit(self, configs: Sequence[TrainConfig], processes: int) -> list[Run]:
        """Create runs, all or none, which wait for the device once their data has been read."""
        made = self._runs.create_all(configs, RunState("checking", processes=processes))
        self.look()
        return made

    def look(self) -> None:
        """Begin the checks that nobody is at, in the background."""
        with self._changing:
            waiting = {run.id for run in self._runs.waiting("checking")}
            self._leave_unless(waiting)
            if waiting and self._now is None:
                self._now = _Sitting()
                self._steady.once(partial(self._work, self._now))

    @property
    def at_work(self) -> bool:
        """Whether this app is at a check."""
        return self._now is not None

    def progress(self, run: str) -> str:
        """How far a run's check is; empty where this app is not at it, or is done with it."""
        return self._progress.get(run, "")

    def _leave_unless(self, waiting: set[str]) -> None:
        """Go on without the thread whose run does not wait any more."""
        now = self._now
        if now is not None and now.lock is not None and now.run not in waiting and self._left < _MOST_LEFT:
            self._let_go(now)
            self._left += 1
            self._now = None

    def _let_go(self, sitting: _Sitting) -> None:
        self._progress.pop(sitting.run, None)
        if sitting.lock is not None:
            sitting.lock.release()
            sitting.lock = None

    def _work(self, sitting: _Sitting) -> None:
        found: dict[Any, dict[str, Any]] = {}
        try:
            for run in self._runs.waiting("checking"):
                if self._now is not sitting:
                    return
                with suppress(RunError):  # deleted meanwhile
                    self._check(run, sitting, found)
        finally:
            with self._changing:
                if self._now is sitting:
                    self._now = None
                else:
                    self._left -= 1

    def _check(self, run: Run, sitting: _Sitting, found: dict[Any, dict[str, Any]]) -> None:
        """Check one run, unless another app is at it."""
        if (lock := HeldLock.acquire(run.lock, {}, patience=0)) is None:
            return
        with self._changing:
            sitting.run, sitting.lock = run.id, lock
        try:
            self._progress[run.id] = "Reading the data"
            self._settle(run.id, found)
        finally:
            with self._changing:
                self._let_go(sitting)

    def _settle(self, name: str, found: dict[Any, dict[str, Any]]) -> None:
        """Read one run's data; what is ``found`` already of the same data is not looked for again."""
        run = self._runs.get(name)
        if run.state.status != "checking":
            return
        try:
            result = found[_data(run.config)] = found.get(_data(run.config)) or self._read(run)
            save_result(run, RESULT, result)
            if result["fatal"]:
                raise DataError(f"dataset: {result['fatal']}")
            after = RunState("queued", processes=run.state.processes)
        except _Ended:
            return
        except DemoError as exc:
            after = replace(run.state, status="failed", error=str(exc), refused=isinstance(exc, RequestError))
        except Exception as exc:  # noqa: BLE001 - kept with the run; the thread has nobody else to tell
            after = replace(run.state, status="failed", error=f"{type(exc).__name__}: {exc}")
        if self._runs.get(name).state.status == "checking":
            write_state(run.path, after)
            logs.event(f"run.{after.status}", run=name)

    def _read(self, run: Run) -> dict[str, Any]:
        halt, result = Halt(), dict[str, Any]()
        for step in self._preflight(run.config, halt):
            self._progress[run.id], result = f"Reading the data: {step.progress.text}", step.result
            if self._runs.get(run.id).state.status != "checking":
                halt.set()
                raise _Ended
        return result


class _Ended(Exception):
    """Somebody stopped the run meanwhile."""


def _data(config: TrainConfig) -> tuple[Any, ...]:
    """What a check depends on."""
    rows = (config.dataset, config.dataset_config, config.dataset_split, config.columns, config.eval_rows, config.seed)
    return config.model, config.max_length, config.loss_on, *rows
