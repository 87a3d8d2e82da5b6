"""What the page and the command line work with, handed to them whole: neither builds anything itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .catalog import BundledModel
from .gpu import Lease
from .launcher import Launcher
from .records import Answer, AnswerRequest, MergeBase, Progress, Report, Resident
from .runs import RunStore
from .settings import Settings


class Engine(Protocol):
    """What may be asked of the models; `ml.engine.Engine` is the real one, tests hand in a fake."""

    def load(self, run: str, names: Sequence[str], stop: threading.Event) -> Iterator[Progress]: ...
    def resident(self) -> tuple[Resident, ...]: ...
    def release(self) -> None: ...
    def answer(self, request: AnswerRequest, stop: threading.Event) -> Iterator[tuple[Answer, ...]]: ...
    def merge(self, run_id: str, onto: MergeBase | None, out: Path | None, report: Report) -> dict[str, Any]: ...
    def evaluate(self, run_id: str, names: Sequence[str], limit: int | None, report: Report) -> dict[str, Any]: ...


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
    fetch: Callable[[BundledModel, Report], Path]
    engine: OnDemand

    def close(self) -> None:
        """Free models and the device."""
        self.engine.release()
