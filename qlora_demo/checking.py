"""Between Start and the queue: a run's data is read as training would, for what waits must not fail hours later.

It goes on when the page that started it is closed, and whichever app looks next takes up what a killed one left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
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


class Checks:
    """One check at a time."""

    def __init__(self, runs: RunStore, preflight: Preflight) -> None:
        self._runs = runs
        self._preflight = preflight
        self._at_work = threading.Lock()
        self._progress: dict[str, str] = {}
        self._steady = Steady("checks")

    def submit(self, configs: Sequence[TrainConfig], processes: int) -> list[Run]:
        """Create runs, all or none, which wait for the device once their data has been read."""
        made = self._runs.create_all(configs, RunState("checking", processes=processes))
        self.look()
        return made

    def look(self) -> None:
        """Begin the checks that nobody is at, in the background."""
        if self._runs.waiting("checking") and self._at_work.acquire(blocking=False):
            self._steady.once(self._work)

    @property
    def at_work(self) -> bool:
        """Whether this app is at a check."""
        return self._at_work.locked()

    def progress(self, run: str) -> str:
        """How far a run's check is; empty where this app is not at it, or is done with it."""
        return self._progress.get(run, "")

    def _work(self) -> None:
        found: dict[Any, dict[str, Any]] = {}
        try:
            for run in self._runs.waiting("checking"):
                with suppress(RunError):  # deleted meanwhile
                    self._check(run, found)
        finally:
            self._at_work.release()

    def _check(self, run: Run, found: dict[Any, dict[str, Any]]) -> None:
        """Check one run, unless another app is at it."""
        if (lock := HeldLock.acquire(run.lock, {}, patience=0)) is None:
            return
        try:
            self._progress[run.id] = "Reading the data"
            self._settle(run.id, found)
        finally:
            lock.release()
            self._progress.pop(run.id, None)

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
