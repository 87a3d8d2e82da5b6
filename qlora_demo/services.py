"""What the page and the command line work with, handed to them whole: neither builds anything itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .access import Access
from .benchmarking import Benchmarks
from .catalog import BundledModel
from .checking import Checks
from .config import TrainConfig
from .gpu import Lease
from .halt import Halt
from .hub import Hub
from .jobs import Jobs
from .launcher import Launcher
from .placement import Placement
from .planning import plan_empty
from .records import Answer, AnswerRequest, Column, ExportRequest, Progress, Report, Resident, Step
from .runs import RunStore
from .settings import Settings
from .votes import VoteStore
from .waiting import Waiting


class Engine(Protocol):
    """What may be asked of the models; `ml.engine.Engine` is the real one, tests hand in a fake."""

    def plan(self, columns: Sequence[Column]) -> Placement: ...
    def load(self, columns: Sequence[Column], halt: Halt) -> Iterator[Progress]: ...
    def resident(self) -> tuple[Resident, ...]: ...
    def release(self) -> None: ...
    def answer(self, request: AnswerRequest, halt: Halt) -> Iterator[tuple[Answer, ...]]: ...
    def evaluate(self, run_id: str, columns: Sequence[Column], limit: int | None, halt: Halt) -> Iterator[Step]: ...
    def fidelity(self, run_id: str, limit: int | None, halt: Halt) -> Iterator[Step]: ...
    def export(self, request: ExportRequest, halt: Halt) -> Iterator[Step]: ...
    def preflight(self, config: TrainConfig, halt: Halt) -> Iterator[Step]: ...
    def layers(self, model: str) -> list[str]: ...
    def explain_layer(self, model: str, layer: str) -> dict[str, Any]: ...
    def explain_update(self, run_id: str, layer: str) -> dict[str, Any]: ...


class OnDemand:
    """An engine that is made, and torch with it imported, at its first use and not before."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self.made: Engine | None = None

    def __call__(self) -> Engine:
        with self._lock:
            self.made = self.made or self._make()
            return self.made

    def resident(self) -> tuple[Resident, ...]:
        """What is in memory; nothing is made for the question."""
        return self.made.resident() if self.made else ()

    def release(self) -> bool:
        """Free what is in memory; whether there was anything."""
        held = bool(self.resident())
        if self.made:
            self.made.release()
        return held


@dataclass(frozen=True)
class Services:
    """One app's parts.  ``fetch`` makes a bundled model's folder where it is missing; its path."""

    settings: Settings
    runs: RunStore
    lease: Lease
    launcher: Launcher
    checks: Checks
    fetch: Callable[[BundledModel, Report], Path]
    engine: OnDemand
    jobs: Jobs
    votes: VoteStore
    hub: Hub
    benchmarks: Benchmarks
    access: Access
    waiting: Waiting

    def plan(self, columns: Sequence[Column]) -> Placement:
        """What loading the columns would do; no engine is made for the question."""
        if self.engine.made:
            return self.engine.made.plan(columns)
        return plan_empty(self.settings, self.runs, columns)

    def close(self) -> None:
        """End what works with the models, after the step it is in, and free them and the device."""
        self.jobs.stop()
        self.engine.release()
