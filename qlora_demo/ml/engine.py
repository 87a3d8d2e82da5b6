"""What the page and the command line may ask of the models; all of it runs on one permanent thread."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..catalog import FIDELITY_ROWS
from ..columns import is_bundled, parse
from ..config import TrainConfig
from ..errors import DataError, OutOfMemory, RunError
from ..gpu import Lease, Purpose
from ..plan.placement import Placement, merge_bases
from ..records import (
    Answer,
    AnswerRequest,
    Column,
    ExportKind,
    ExportRequest,
    MergeBase,
    Message,
    Progress,
    Resident,
    Step,
)
from ..results.exporting import base_for, card, export_folder, facts, lines
from ..runs import Run, RunStore
from ..settings import Settings
from ..sources import resolve
from ..stored import require_room
from ..system import logs
from ..system.halt import Halt
from ..system.locks import HeldLock
from .device import device, ran_out
from .evaluate import Rows
from .explain import explain_layer, explain_update, layer_names
from .export import ExportTarget, export_adapter, export_merged
from .judge import before_after, merge_fidelity
from .preflight import preflight
from .roofline import read_bandwidth
from .turns import answers
from .usable import require_usable_gpu
from .variants import Variants
from .worker import Worker


class Engine:
    """Holds the resident models; every method may be called from any thread."""

    def __init__(self, settings: Settings, runs: RunStore, lease: Lease) -> None:
        self.runs = runs
        self._lease = lease
        self._held: HeldLock | None = None
        self.settings = settings
        self._variants = Variants(settings, runs)
        self._worker = Worker(self._variants.build_a_piece)
        self._bandwidth = 0.0

    def plan(self, columns: Sequence[Column]) -> Placement:
        """What loading the columns would do; nothing is loaded."""
        return self._variants.plan(columns)

    def load(self, columns: Sequence[Column], halt: Halt) -> Iterator[Progress]:
        """Bring columns into memory, warmed up, one per step; `halt` ends it between two."""
        return self._worker.iterate(lambda: self._load(columns, halt, "chat"), halt)

    def resident(self) -> tuple[Resident, ...]:
        """The columns that were last asked for and are in memory."""
        return tuple(loaded.resident for loaded in self._variants.loaded.values())

    def release(self) -> None:
        """Free every model and let go of the device."""
        self._worker.call(self._release)

    def answer(self, request: AnswerRequest, halt: Halt) -> Iterator[tuple[Answer, ...]]:
        """Answer in all columns; snapshots of all, at most twelve a second.

        Closing the iterator or setting `halt` ends it, or one column of it.
        """
        return self._worker.iterate(lambda: self._answer(request, halt), halt)

    def evaluate(self, run_id: str, columns: Sequence[Column], limit: int | None, halt: Halt) -> Iterator[Step]:
        """Figures of the columns on each held-out split of a run: ``variants``, ``splits``, ``rows``."""
        return self._worker.iterate(lambda: self._evaluate(run_id, columns, limit, halt), halt)

    def fidelity(self, run_id: str, limit: int | None, halt: Halt) -> Iterator[Step]:
        """All merges of a run against its adapter model: ``merges.{column}``, ``sentence``."""
        return self._worker.iterate(lambda: self._fidelity(run_id, limit, halt), halt)

    def export(self, request: ExportRequest, halt: Halt) -> Iterator[Step]:
        """Save an adapter or a merged model with its card; merged ones are reloaded and compared: ``path``, ``what``,
        ``onto``, ``fidelity``, ``verified``, ``load.vllm``, ``load.transformers``."""
        return self._worker.iterate(lambda: self._export(request, halt), halt)

    def preflight(self, config: TrainConfig, halt: Halt) -> Iterator[Step]:
        """What training would see of a config's data; needs no model, so it runs where it is asked."""
        return preflight(config, self.settings, halt)

    def layers(self, model: str) -> list[str]:
        """The linear layers of a base model that is on this disk."""
        return layer_names(resolve(self.settings, model))

    def explain_layer(self, model: str, layer: str) -> dict[str, Any]:
        """What NF4 does to one layer; see `explain.explain_layer`."""
        return explain_layer(resolve(self.settings, model), layer)

    def explain_update(self, run_id: str, layer: str) -> dict[str, Any]:
        """What a run learned for one layer; see `explain.explain_update`."""
        run = self.runs.get(run_id)
        config = run.config
        if config.use_dora:
            raise RunError(f"run {run_id}: DoRA's update is more than B times A; choose a run without use_dora")
        scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        return explain_update(resolve(self.settings, config.model), run.adapter, layer, scale, config.base_form)

    def _load(self, columns: Sequence[Column], halt: Halt, purpose: Purpose) -> Generator[Progress]:
        self._variants.plan(columns)
        run = "" if is_bundled(columns[0]) else "run "
        if self._held is None:
            require_usable_gpu()
        self._held = self._held or self._lease.acquire(purpose, f"of {run}{columns[0].source}")
        room = True
        try:
            for progress in self._variants.load(columns):
                yield progress
                if halt.is_set():
                    return
            self._bandwidth = self._bandwidth or read_bandwidth(device())
        except (RuntimeError, MemoryError) as exc:
            if not ran_out(exc):
                raise
            room = False
        finally:
            if not self._variants.held:
                self._release()
        if not room:
            self._release()
            names = ", ".join(column.name for column in columns)
            raise OutOfMemory(f"device: no room to load {names}; choose fewer columns")

    def _until(self, halt: Halt, what: str, steps: Generator[Step]) -> Generator[Step]:
        """The steps up to the one after which somebody asked for the end; where memory ends first, all is freed."""
        room = True
        try:
            with closing(steps):
                for step in steps:
                    yield step
                    if halt.is_set():
                        return
        except (RuntimeError, MemoryError) as exc:
            if not ran_out(exc):
                raise
            room = False
        del steps
        if not room:
            self._release()
            raise OutOfMemory(f"device: no room to {what}; all models were freed: try again with less")

    def _release(self) -> None:
        """Free the models, and the device also where that fails: a GPU whose context is lost gives nothing back."""
        try:
            self._variants.release()
        finally:
            if self._held is not None:
                self._held.release()
                self._held = None

    def _answer(self, request: AnswerRequest, halt: Halt) -> Generator[tuple[Answer, ...]]:
        for _ in self._load(request.columns, halt, "chat"):
            pass
        if not halt.is_set():
            loaded = [self._variants.loaded[column.name] for column in request.columns]
            told: tuple[Answer, ...] = ()
            for told in answers(loaded, request, self._bandwidth, halt):
                yield told
            logs.event("answer.ended", columns={one.column: one.timing.new_tokens for one in told})

    def _evaluate(self, run_id: str, columns: Sequence[Column], limit: int | None, halt: Halt) -> Generator[Step]:
        splits = {split: rows[:limit] for split, rows in self._heldout(run_id).items()}
        for progress in self._load(columns, halt, "evaluation"):
            yield Step(replace(progress, fraction=None))  # the bar is of the rows
        if halt.is_set():
            return
        yield from self._until(halt, "evaluate", before_after(columns, splits, self._variants.loaded))

    def _fidelity(self, run_id: str, limit: int | None, halt: Halt) -> Generator[Step]:
        rows = next(iter(self._heldout(run_id).values()))[: limit or FIDELITY_ROWS]

        def load(columns: Sequence[Column]) -> Iterator[Progress]:
            return self._load(columns, halt, "evaluation")

        bases = merge_bases(self.runs.get(run_id).config.base_form)
        steps = merge_fidelity(run_id, bases, rows, load, lambda: self._variants.loaded)
        yield from self._until(halt, "compare merges", steps)

    def _export(self, request: ExportRequest, halt: Halt) -> Generator[Step]:
        run = self.runs.get(request.run)
        if request.out is None:
            require_room(self.settings.home, self.settings.limits)
        onto = base_for(run, request.what, request.onto)
        out = (request.out or export_folder(run, request.what, onto)).expanduser().resolve()
        base = self._variants.origin(parse("adapter", run.id)).model
        load = {"load": lines(self.runs, run, request.what, onto, (out, base))}
        with closing(self._exported(run, request.what, onto, out, halt)) as steps:
            for step in steps:
                yield Step(step.progress, step.result and step.result | load)

    def _exported(self, run: Run, what: ExportKind, onto: MergeBase, out: Path, halt: Halt) -> Generator[Step]:
        def written(fidelity: dict[str, Any]) -> str:
            return card(facts(self.runs, run, what, onto, fidelity))

        adapter = parse("adapter", run.id)
        if what == "adapter":
            yield from export_adapter(self._variants.origin(adapter), out, written)
            return
        rows: Rows = next(iter(self.runs.heldout(run.id).values()), [])[:FIDELITY_ROWS]
        yield from (Step(progress) for progress in self._load([adapter], halt, "merge"))
        if halt.is_set():
            return
        model = self._variants.loaded[adapter.name]
        target = ExportTarget(onto, out, what == "merged-4bit")
        steps = export_merged(self._variants.origin(adapter), model, rows, target, written)
        yield from self._until(halt, "merge", steps)

    def _heldout(self, run_id: str) -> dict[str, list[list[Message]]]:
        splits = {name: rows for name, rows in self.runs.heldout(run_id).items() if rows}
        if not splits:
            raise DataError(
                f"run {run_id}: its heldout folder holds no chat rows; train on rows with questions and answers"
            )
        return splits
