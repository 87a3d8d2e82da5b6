"""A benchmark's result -> plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..results import plots
from ..units import GIB
from .reckoned import Result, Row

_PHASES = ("load", "forward", "backward", "optimizer")
_DRAWN = {
    "training": (*(f"{name}_peak_bytes" for name in _PHASES), "step_median_seconds", "tokens_per_second"),
    "rank": ("peak_bytes", "tokens_per_second"),
    "frontier": ("longest_row", "planned_longest_row", "largest_batch", "planned_largest_batch"),
    "inference": ("prompt_tokens", "batch", "ttft_median_seconds", "tpot_median_seconds", "tokens_per_second"),
}
"""The figures without which a row is in no plot."""


def figures(result: Result) -> list[str]:
    """The result's plots, as SVG; none where nothing was measured yet."""
    drawn = _DRAWN[result["kind"]]
    rows = [row for row in result["rows"] if row.get("fits") and all(row.get(name) is not None for name in drawn)]
    if not rows:
        return []
    makers = {"training": _training_plots, "rank": _rank_plots, "frontier": _frontier_plots, "inference": _curves}
    return list(makers[result["kind"]](rows))


def _training_plots(rows: list[Row]) -> Iterable[str]:
    peaks = {_short(row["case"]): {name: row[f"{name}_peak_bytes"] / GIB for name in _PHASES} for row in rows}
    yield plots.bars("Peak memory by phase", "GiB", peaks)
    yield plots.bars("Median step", "seconds", {_short(row["case"]): {"": row["step_median_seconds"]} for row in rows})
    yield plots.bars(
        "Training speed", "tokens/s", {_short(row["case"]): {"": row["tokens_per_second"]} for row in rows}
    )


def _rank_plots(rows: list[Row]) -> Iterable[str]:
    memory_taken = _by_target(rows, lambda row: float(row["peak_bytes"] / GIB))
    yield plots.lines("Peak memory by rank", "rank r", "GiB", memory_taken)
    speed = _by_target(rows, lambda row: float(row["tokens_per_second"]))
    yield plots.lines("Training speed by rank", "rank r", "tokens/s", speed)
    if scored := [row for row in rows if "exact_match" in row.get("score", {})]:
        scores = _by_target(scored, lambda row: 100 * float(row["score"]["exact_match"]))
        yield plots.lines("Exact match by rank", "rank r", "% of the held-out rows", scores)


def _by_target(rows: list[Row], value: Callable[[Row], float]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        rank, _, target = row["case"].removeprefix("r ").partition(", ")
        series.setdefault(target, []).append((float(rank), value(row)))
    return series


def _frontier_plots(rows: list[Row]) -> Iterable[str]:
    both = (
        ("longest_row", "Longest row that trains within the budget", "tokens"),
        ("largest_batch", "Largest batch that trains within the budget", "rows"),
    )
    for name, title, label in both:
        planned = f"planned_{name}"
        found = {_short(row["case"]): {"measured": row[name], "planned": row[planned]} for row in rows}
        yield plots.bars(title, label, found)


def _curves(rows: list[Row]) -> Iterable[str]:
    smallest = min(row["batch"] for row in rows)
    alone = [row for row in rows if row["batch"] == smallest]
    shown = (
        ("ttft_median_seconds", "Time to first token", "milliseconds", 1000),
        ("tpot_median_seconds", "Time per output token", "milliseconds", 1000),
    )
    for name, title, label, scale in shown:
        series: dict[str, list[tuple[float, float]]] = {}
        for row in alone:
            series.setdefault(row["case"], []).append((float(row["prompt_tokens"]), scale * row[name]))
        yield plots.lines(f"{title}, batch {smallest}", "prompt (tokens)", label, series)
    batches: dict[str, list[tuple[float, float]]] = {}
    shortest = min(row["prompt_tokens"] for row in rows)
    for row in rows:
        if row["prompt_tokens"] == shortest:
            batches.setdefault(row["case"], []).append((float(row["batch"]), row["tokens_per_second"]))
    yield plots.lines(f"Decoding speed by batch, prompts of {shortest} tokens", "batch (rows)", "tokens/s", batches)


def _short(case: str) -> str:
    """A case's name on several lines, to stand under a bar."""
    return case.replace(", ", "\n")
