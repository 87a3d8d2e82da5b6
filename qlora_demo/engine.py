"""What may be asked of the models, by whoever does not import torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from .config import TrainConfig
from .plan.placement import Placement
from .records import Answer, AnswerRequest, Column, ExportRequest, Progress, Resident, Step
from .system.halt import Halt


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
