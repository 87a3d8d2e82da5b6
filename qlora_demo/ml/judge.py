"""Before and after on held-out rows, and whether a merged model is still the model that was trained.

Each is an iterator of steps with the result so far, so that it can be shown while it grows, and stopped and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from ..columns import parse, title
from ..errors import DataError, WorkError
from ..records import Column, MergeBase, Progress, Step
from ..results.answers import asked
from ..results.verdicts import fidelity_sentence
from .evaluate import (
    ANSWER_TOKENS,
    Divergence,
    RowResult,
    Rows,
    divergences,
    evaluate,
    fidelity_figures,
    figures,
    that_fit,
)
from .variants import Loaded

Load = Callable[[Sequence[Column]], Iterator[Progress]]
Splits = Mapping[str, Rows]


def before_after(columns: Sequence[Column], splits: Splits, loaded: dict[str, Loaded]) -> Generator[Step]:
    """Figures and rows of every column on every split; ``splits.{split}.{column}``, ``rows.{split}[].answers``, and
    ``left_out``: how many rows ask nothing within a model's context; ``weights.{column}``: what answered."""
    models = [loaded[column.name] for column in columns]
    weights = {one.resident.column.name: f"{one.resident.precision}, {one.resident.note}" for one in models}
    given = sum(map(len, splits.values()))
    splits = measurable(models, splits)
    rows_each = sum(map(len, splits.values()))
    found: dict[str, dict[str, list[RowResult]]] = {split: {} for split in splits}
    done = 0
    for split, rows in splits.items():
        for column in columns:
            results = found[split].setdefault(column.name, [])
            yield Step(Progress(f"{split}: {title(column)} answers", done / (rows_each * len(columns))))
            for batch in _evaluated(loaded[column.name], rows):
                results += batch
                done += len(batch)
                text = f"{split}: {title(column)}, {len(results)} of {len(rows)} rows"
                result = {**_document(found, splits), "left_out": given - rows_each, "weights": weights}
                yield Step(Progress(text, done / (rows_each * len(columns))), result)


def _evaluated(one: Loaded, rows: Rows) -> Iterator[list[RowResult]]:
    """As `evaluate`; what fails names the column."""
    try:
        yield from evaluate(one, rows)
    except WorkError as exc:
        raise WorkError(f"{one.resident.column.name}: {exc}") from exc


def merge_fidelity(
    run: str, bases: Sequence[MergeBase], rows: Rows, load: Load, loaded: Callable[[], dict[str, Loaded]]
) -> Generator[Step]:
    """The merges onto all bases, in 16 bit and quantized again, against the adapter model: distributions, loss, task
    score, greedy answers; a sentence that says which to ship; ``left_out`` as in `before_after`.

    One merged model is needed in memory at a time.
    """
    adapter = parse("adapter", run)
    reference, given = list[RowResult](), len(rows)
    merges: dict[str, dict[str, Any]] = {}
    columns = [parse(f"{recipe}:{onto}", run) for recipe in ("merged", "merged-4bit") for onto in bases]
    for at, merged in enumerate(columns):
        yield from (Step(p) for p in load([adapter, merged]))
        models = loaded()
        if not reference:
            rows = measurable([models[adapter.name]], {"test": rows})["test"]
            yield Step(Progress("the adapter model's answers", at / len(columns)))
            reference = [one for batch in _evaluated(models[adapter.name], rows) for one in batch]
        yield Step(Progress(f"{title(merged)}: answers", (at + 0.3) / len(columns)))
        results = [one for batch in _evaluated(models[merged.name], rows) for one in batch]
        yield Step(Progress(f"{title(merged)}: distributions", (at + 0.7) / len(columns)))
        found = list(divergences(models[merged.name], models[adapter.name], rows))
        merges[merged.name] = _merge_figures(found, results, reference)
        sentence = fidelity_sentence(merges, len(bases))
        verdict = {"merges": dict(merges), "sentence": sentence, "left_out": given - len(rows)}
        yield Step(Progress(f"{title(merged)}: measured", (at + 1) / len(columns)), verdict)


def measurable(models: Sequence[Loaded], splits: Splits) -> Splits:
    """Of each split the rows that every model can be asked, where there are some; raises `DataError` where there are
    none at all."""
    found = splits
    for one in models:
        found = {split: that_fit(one.model, one.tokenizer, rows, ANSWER_TOKENS) for split, rows in found.items()}
    found = {split: rows for split, rows in found.items() if rows}
    if not found:
        count = sum(map(len, splits.values()))
        raise DataError(f"heldout: none of {count} rows asks something within the model's context; train on others")
    return found


def _merge_figures(
    found: Sequence[Divergence], ours: Sequence[RowResult], theirs: Sequence[RowResult]
) -> dict[str, Any]:
    mine, reference = figures(ours), figures(theirs)
    same = sum(one.answer == other.answer for one, other in zip(ours, theirs, strict=True))
    return {
        **fidelity_figures(found),
        "loss_change": mine["loss"] - reference["loss"],
        "exact_match": mine["exact_match"],
        "exact_match_change": mine["exact_match"] - reference["exact_match"],
        "identical_answers": same / len(ours),
    }


def _document(found: dict[str, dict[str, list[RowResult]]], splits: Splits) -> dict[str, Any]:
    scores = {split: {name: figures(rows) for name, rows in columns.items()} for split, columns in found.items()}
    return {
        "variants": scores[next(iter(scores))],
        "splits": {split: columns for split, columns in scores.items() if columns},
        "rows": {split: _rows(columns, splits[split]) for split, columns in found.items() if columns},
    }


def _rows(columns: dict[str, list[RowResult]], rows: Rows) -> list[dict[str, Any]]:
    done = max(map(len, columns.values()))
    return [
        {
            "prompt": asked(row[:-1]),
            "reference": row[-1]["content"],
            "answers": {name: _answer(results[at]) for name, results in columns.items() if at < len(results)},
        }
        for at, row in enumerate(rows[:done])
    ]


def _answer(result: RowResult) -> dict[str, Any]:
    return {
        "text": result.answer,
        "exact_match": result.score.exact_match,
        "rouge_l": result.score.rouge_l,
        "loss": result.nll / result.tokens,
    }
