"""A benchmark's result -> tables and plots: the page, the command line and the README show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import plots
from .tables import Table
from .units import GIB, duration, memory, percent

Result = Mapping[str, Any]
Row = Mapping[str, Any]
Form = Callable[[Any], str]


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _times(value: float) -> str:
    return f"{value:.2f} x"


COLUMNS: dict[str, dict[str, tuple[str, Form]]] = {
    "training": {
        "load_peak_bytes": ("peak, load", memory),
        "forward_peak_bytes": ("peak, forward", memory),
        "backward_peak_bytes": ("peak, backward", memory),
        "optimizer_peak_bytes": ("peak, optimizer", memory),
        "peak_bytes": ("peak", memory),
        "device_peak_bytes": ("needed of the device", memory),
        "planned_bytes": ("planned", memory),
        "step_median_seconds": ("step, median", duration),
        "step_p95_seconds": ("step, 95%", duration),
        "step_max_seconds": ("step, max", duration),
        "tokens_per_second": ("tokens/s", _rate),
        "flops_share": ("FLOP utilisation", percent),
        "trainable_parameters": ("trainable parameters", _count),
    },
    "frontier": {
        "longest_row": ("longest row (tokens)", _count),
        "planned_longest_row": ("by the plan", _count),
        "largest_batch": ("largest batch (rows)", _count),
        "batch_row_tokens": ("of so many tokens", _count),
        "planned_largest_batch": ("by the plan", _count),
        "budget_bytes": ("budget", memory),
        "note": ("note", str),
    },
    "inference": {
        "prompt_tokens": ("prompt (tokens)", _count),
        "batch": ("batch", _count),
        "ttft_median_seconds": ("first token, median", duration),
        "tpot_median_seconds": ("per token, median", duration),
        "tpot_p95_seconds": ("per token, 95%", duration),
        "tokens_per_second": ("tokens/s", _rate),
        "bandwidth_share": ("of the bandwidth", percent),
        "generate_ttft_median_seconds": ("first token, generate()", duration),
        "generate_tpot_median_seconds": ("per token, generate()", duration),
        "over_generate": ("speed over generate()", _times),
        "decode": ("decoded by", str),
        "model_bytes": ("weights", memory),
        "peak_bytes": ("peak", memory),
    },
}
COLUMNS["rank"] = {
    name: COLUMNS["training"][name]
    for name in ("trainable_parameters", "peak_bytes", "step_median_seconds", "tokens_per_second")
}
"""Each figure's label and how it is written, by kind of benchmark."""
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_COMPARED = {
    "training": ("peak_bytes", "step_median_seconds", "tokens_per_second"),
    "rank": ("peak_bytes", "step_median_seconds", "tokens_per_second"),
    "frontier": ("longest_row", "largest_batch"),
    "inference": ("ttft_median_seconds", "tpot_median_seconds", "tokens_per_second"),
}


_BRIEF = {
    "training": ("peak_bytes", "planned_bytes", "step_median_seconds", "tokens_per_second"),
    "frontier": ("longest_row", "largest_batch", "batch_row_tokens", "budget_bytes"),
    "rank": tuple(COLUMNS["rank"]),
    "inference": (
        "prompt_tokens",
        "batch",
        "ttft_median_seconds",
        "tpot_median_seconds",
        "tokens_per_second",
        "bandwidth_share",
        "over_generate",
    ),
}
"""The figures that a short table keeps."""
_PHASES = ("load", "forward", "backward", "optimizer")
_DRAWN = {
    "training": (*(f"{name}_peak_bytes" for name in _PHASES), "step_median_seconds", "tokens_per_second"),
    "rank": ("peak_bytes", "tokens_per_second"),
    "frontier": ("longest_row", "planned_longest_row", "largest_batch", "planned_largest_batch"),
    "inference": ("prompt_tokens", "batch", "ttft_median_seconds", "tpot_median_seconds", "tokens_per_second"),
}
"""The figures without which a row is in no plot."""
_OF_THE_DEVICE = {"peak_bytes": "device_peak_bytes"}


def table(result: Result) -> Table:
    """Every row with its figures; what does not fit says so."""
    return _table(result, COLUMNS[result["kind"]])


def brief(result: Result) -> Table:
    """The same rows with the figures that matter most; of a GPU, as planned, all that is taken of it."""
    columns = COLUMNS[result["kind"]]
    on_gpu = "cuda" in result.get("machine", {})
    names = (_OF_THE_DEVICE.get(name, name) if on_gpu else name for name in _BRIEF[result["kind"]])
    return _table(result, {name: columns[name] for name in names if name in columns})


def _table(result: Result, columns: Mapping[str, tuple[str, Form]]) -> Table:
    head = ("case", *(label for label, _ in columns.values()), *(["exact match"] if _scored(result) else []))
    return Table(head, tuple(_cells(row, columns, _scored(result)) for row in result["rows"]))


def comparison(older: Result, newer: Result) -> Table:
    """The cases that two results of one kind share: each figure of both, and newer over older."""
    if older["kind"] != newer["kind"]:
        return Table(("case", "figure", "first", "second", "ratio"), ())
    theirs = {_key(row): row for row in newer["rows"]}
    rows = [
        (_title(row), *compared)
        for row in older["rows"]
        if _key(row) in theirs
        for compared in _ratios(row, theirs[_key(row)], older["kind"])
    ]
    return Table(("case", "figure", "first", "second", "ratio"), tuple(rows))


def figures(result: Result) -> list[str]:
    """The result's plots, as SVG; none where nothing was measured yet."""
    drawn = _DRAWN[result["kind"]]
    rows = [row for row in result["rows"] if row.get("fits") and all(row.get(name) is not None for name in drawn)]
    if not rows:
        return []
    makers = {"training": _training_plots, "rank": _rank_plots, "frontier": _frontier_plots, "inference": _curves}
    return list(makers[result["kind"]](rows))


def machine(result: Result) -> str:
    """What the figures were measured on, in a line."""
    found = result.get("machine", {})
    libraries = ", ".join(f"{name} {found[name]}" for name in _LIBRARIES if name in found)
    driver = f"driver {found['driver']}, CUDA {found['cuda']}" if {"driver", "cuda"} <= found.keys() else ""
    return "; ".join(filter(None, (found.get("device", ""), driver, found.get("platform", ""), libraries)))


def settings(result: Result) -> str:
    """What was trained or answered, in a line."""
    config = result.get("config")
    if not config:
        return "settings not told"
    if result["kind"] == "inference":
        return result.get("options", {}).get("run") or f"{config['model']}, random adapter of rank {config['r']}"
    ranks = "" if result["kind"] == "rank" else f", r {config['r']} on {config['target_modules']}"
    scored = f", {config.get('max_steps')} steps, {config['score_rows']} answers" if config.get("score_rows") else ""
    return (
        f"{config['model']}, batch {config['per_device_train_batch_size']}, rows of {config['max_length']} tokens, "
        f"accumulation {config['gradient_accumulation_steps']}{ranks}{scored}"
    )


def _cells(row: Row, columns: Mapping[str, tuple[str, Form]], scored: bool) -> tuple[str, ...]:
    if not row.get("fits"):
        size = f"{row['prompt_tokens']} tokens, batch {row['batch']}: " if "batch" in row else ""
        told = [f"does not fit: {size}{row.get('error', '')}"]
        return (row["case"], *told, *[""] * (len(columns) - 1 + scored))
    cells = (_cell(row, name, form) for name, (_, form) in columns.items())
    score = row.get("score", {}).get("exact_match")
    return (row["case"], *cells, *([percent(score) if score is not None else "–"] if scored else []))


def _cell(row: Row, name: str, form: Form) -> str:
    if row.get(name) is None:
        return "–"
    return "≥ " * (name in row.get("capped", ())) + form(row[name])


def _scored(result: Result) -> bool:
    return any("score" in row for row in result["rows"])


def _key(row: Row) -> tuple[Any, ...]:
    return row["case"], row.get("prompt_tokens"), row.get("batch")


def _title(row: Row) -> str:
    size = f", {row['prompt_tokens']} tokens, batch {row['batch']}" if "batch" in row else ""
    return f"{row['case']}{size}"


def _ratios(older: Row, newer: Row, kind: str) -> Iterable[tuple[str, ...]]:
    for name in _COMPARED[kind]:
        label, form = COLUMNS[kind][name]
        before, after = older.get(name), newer.get(name)
        if before and after:
            capped = name in (*older.get("capped", ()), *newer.get("capped", ()))
            ratio = "–" if capped else f"{after / before:.2f}"
            yield label, _cell(older, name, form), _cell(newer, name, form), ratio


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
    if any("score" in row for row in rows):
        scores = _by_target(rows, lambda row: 100 * row["score"].get("exact_match", 0.0))
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
        found = {_short(row["case"]): {"measured": row[name], "by the plan": row[planned]} for row in rows}
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
