"""What the page and the command line may ask of the models.

Everything runs on one permanent thread: CUDA graphs are bound to a thread, and one thread cannot overlap two passes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..catalog import VARIANTS
from ..errors import DataError, DemoError, OutOfMemory
from ..gpu import Lease, Purpose
from ..locks import HeldLock
from ..records import Answer, AnswerRequest, GenerationChunk, MergeBase, Message, Progress, Proof, Report, Resident
from ..runs import Run, RunStore
from ..settings import Settings
from .evaluate import evaluate, fidelity
from .generate import add_pass, stream
from .merge import default_base, load_merged, save_merged
from .variants import Loaded, Variants, prove

T = TypeVar("T")
_UPDATE_SECONDS = 1 / 12
_PATIENCE_SECONDS = 0.25
_FIDELITY_ROWS = 16


class Engine:
    """Holds the resident models; every method may be called from any thread."""

    def __init__(self, settings: Settings, runs: RunStore, lease: Lease) -> None:
        self.settings = settings
        self.runs = runs
        self._lease = lease
        self._held: HeldLock | None = None
        self._variants = Variants(settings)
        self._worker = Worker()

    def load(self, run: str, names: Sequence[str], stop: threading.Event) -> Iterator[Progress]:
        """Bring the variants of a run into memory, warmed up, one per step; setting `stop` ends it between two."""
        return self._worker.iterate(lambda: self._loading(run, names, stop), stop)

    def resident(self) -> tuple[Resident, ...]:
        """What is in memory now."""
        return tuple(loaded.resident for loaded in self._variants.loaded.values())

    def release(self) -> None:
        """Free every model and let go of the device."""
        self._worker.call(self._release)

    def answer(self, request: AnswerRequest, stop: threading.Event) -> Iterator[tuple[Answer, ...]]:
        """Answer in all columns by fair turns: one forward pass per column, in turn, until each has ended.

        Yields snapshots of all columns, at most twelve a second.  Closing the iterator or setting `stop` ends it.
        """
        return self._worker.iterate(lambda: self._answer(request, stop), stop)

    def merge(self, run_id: str, onto: MergeBase | None, out: Path | None, report: Report) -> dict[str, Any]:
        """Save the merged 16-bit model; ``path``, ``onto`` and its ``fidelity`` to the adapter model."""
        return self._worker.call(lambda: self._merge(self.runs.get(run_id), onto, out, report))

    def evaluate(self, run_id: str, names: Sequence[str], limit: int | None, report: Report) -> dict[str, Any]:
        """Scores of the variants on each held-out split of the run."""
        return self._worker.call(lambda: self._evaluate(self.runs.get(run_id), names, limit, report))

    def _load(self, run: str, names: Sequence[str], report: Report, purpose: Purpose = "chat") -> list[Loaded]:
        for progress in self._loading(run, names, threading.Event(), purpose):
            report(progress)
        return [self._variants.loaded[name] for name in names]

    def _loading(
        self, run_id: str, names: Sequence[str], stop: threading.Event, purpose: Purpose = "chat"
    ) -> Iterator[Progress]:
        run = self.runs.get(run_id)
        self._held = self._held or self._lease.acquire(purpose, f"of run {run_id}")
        try:
            for progress in self._variants.load(run, names):
                if stop.is_set():
                    return
                yield progress
        except torch.OutOfMemoryError as exc:
            self._release()
            raise OutOfMemory(f"device: no room to load {', '.join(names)}; choose fewer columns") from exc
        finally:
            if not self._variants.loaded:
                self._release()

    def _release(self) -> None:
        self._variants.release()
        if self._held is not None:
            self._held.release()
            self._held = None

    def _answer(self, request: AnswerRequest, stop: threading.Event) -> Iterator[tuple[Answer, ...]]:
        for _ in self._loading(request.run, list(request.conversations), stop):
            pass
        if stop.is_set():
            return
        loaded = [self._variants.loaded[name] for name in request.conversations]
        answers = {one.resident.variant: self._begin(one) for one in loaded}
        columns: dict[str, Any] = {one.resident.variant: self._column(one, request) for one in loaded}
        shown, rounds = 0.0, 0
        while columns and not stop.is_set():
            order = deque(columns)
            order.rotate(-rounds)
            rounds += 1
            for name in order:
                answers[name] = _turn(answers[name], columns[name])
                if answers[name].finish or answers[name].error:
                    columns.pop(name).close()
            if time.monotonic() - shown >= _UPDATE_SECONDS:
                yield tuple(answers.values())
                shown = time.monotonic()
        for name, column in columns.items():
            column.close()
            answers[name] = replace(answers[name], finish="stopped")
        yield tuple(answers.values())

    def _begin(self, loaded: Loaded) -> Answer:
        return Answer(loaded.resident.variant, model_bytes=loaded.resident.model_bytes)

    def _column(self, loaded: Loaded, request: AnswerRequest) -> Iterator[tuple[GenerationChunk, Proof]]:
        conversation = request.conversations[loaded.resident.variant]
        for chunk in stream(loaded.model, self._variants.tokenizer, conversation, request.settings, loaded.activate):
            yield chunk, prove(loaded, chunk.fingerprint)

    def _merge(self, run: Run, onto: MergeBase | None, out: Path | None, report: Report) -> dict[str, Any]:
        onto = onto or default_base(run.config)
        out = (out or run.path / f"merged-{onto}").expanduser().resolve()
        [adapter] = self._load(run.id, ["adapter"], report, "merge")
        report(Progress(f"merging onto the {onto} base", 0.3))
        model = load_merged(self._variants.source, run.adapter, run.config, onto)
        merged = Loaded(replace(adapter.resident, variant="merged", adapter="merged"), model)
        report(Progress("comparing with the adapter model", 0.5))
        rows = _heldout(self.runs, run)
        measured = fidelity(merged, adapter, self._variants.tokenizer, next(iter(rows.values()))[:_FIDELITY_ROWS])
        report(Progress(f"saving to {out}", 0.8))
        return {"path": str(save_merged(model, run.adapter, out)), "onto": onto, "fidelity": measured}

    def _evaluate(self, run: Run, names: Sequence[str], limit: int | None, report: Report) -> dict[str, Any]:
        splits = {split: rows[:limit] for split, rows in _heldout(self.runs, run).items()}
        loaded = self._load(run.id, names, report, "evaluation")
        work = [(one, split, rows) for split, rows in splits.items() for one in loaded]
        figures: dict[str, dict[str, Any]] = {split: {} for split in splits}
        for place, (one, split, rows) in enumerate(work):
            name = one.resident.variant
            for figures[split][name] in evaluate(one, self._variants.tokenizer, rows):
                done = figures[split][name]["rows"]
                share = (place + done / len(rows)) / len(work)
                report(Progress(f"{split}: {VARIANTS[name]}, {done} of {len(rows)} rows", share))
        return {"run": run.id, "variants": figures[next(iter(splits))], "splits": figures}


class Worker:
    """One thread that does everything it is asked, in order, for as long as the process lives."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="models", daemon=True).start()

    def call(self, work: Callable[[], T]) -> T:
        """Do it on the thread; return what it returns or raise what it raises."""
        done: Future[T] = Future()
        self._jobs.put(lambda: _settle(done, work))
        return done.result()

    def iterate(self, begin: Callable[[], Iterator[T]], stop: threading.Event) -> Iterator[T]:
        """Run an iterator on the thread and yield its items here; leaving early sets `stop`.

        The thread waits, for a moment at most, until an item is dealt with: what is done with it would otherwise run
        beside the next model pass and into its time.
        """
        items: queue.SimpleQueue[tuple[T, ...]] = queue.SimpleQueue()
        taken = threading.Semaphore(0)
        done: Future[None] = Future()

        def pump() -> None:
            for item in begin():
                items.put((item,))
                taken.acquire(timeout=_PATIENCE_SECONDS)

        def work() -> None:
            _settle(done, pump)
            items.put(())

        self._jobs.put(work)
        whole = False
        try:
            while item := items.get():
                yield item[0]
                taken.release()
            whole = True
        finally:
            if not whole:
                stop.set()
                taken.release()
        done.result()

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _settle(done: Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as exc:  # noqa: BLE001 - handed to the thread that asked, whatever it is
        done.set_exception(exc)


def _turn(answer: Answer, column: Iterator[tuple[GenerationChunk, Proof]]) -> Answer:
    try:
        chunk, proof = next(column)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return replace(answer, error="device: out of memory; shorten the conversation or choose fewer columns")
    except DemoError as exc:
        return replace(answer, error=str(exc))
    timing = add_pass(answer.timing, chunk)
    return replace(answer, text=answer.text + chunk.text, timing=timing, finish=chunk.finish, proof=proof)


def _heldout(runs: RunStore, run: Run) -> dict[str, list[list[Message]]]:
    splits = {name: rows for name, rows in runs.heldout(run.id).items() if rows}
    if not splits:
        raise DataError(
            f"run {run.id}: its heldout folder holds no chat rows; train on rows with questions and answers"
        )
    return splits
