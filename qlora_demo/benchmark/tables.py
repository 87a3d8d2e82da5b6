"""A benchmark's result -> tables: the page, the command line and the README show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..results.tables import Table, score
from ..units import duration, memory, percent
from .reckoned import Result, Row, reckoned

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
        "device_peak_bytes": ("needed on the device", memory),
        "planned_bytes": ("planned", memory),
        "step_median_seconds": ("step, median", duration),
        "step_p95_seconds": ("step, p95", duration),
        "step_max_seconds": ("step, max", duration),
        "tokens_per_second": ("tokens/s", _rate),
        "flops_share": ("FLOP utilisation", percent),
        "trainable_parameters": ("trainable parameters", _count),
    },
    "frontier": {
        "longest_row": ("longest row (tokens)", _count),
        "planned_longest_row": ("longest row, planned", _count),
        "largest_batch": ("largest batch (rows)", _count),
        "batch_row_tokens": ("row length (tokens)", _count),
        "planned_largest_batch": ("largest batch, planned", _count),
        "budget_bytes": ("budget", memory),
        "note": ("note", str),
    },
    "inference": {
        "prompt_tokens": ("prompt (tokens)", _count),
        "batch": ("batch", _count),
        "ttft_median_seconds": ("first token, median", duration),
        "tpot_median_seconds": ("per token, median", duration),
        "tpot_p95_seconds": ("per token, p95", duration),
        "tokens_per_second": ("tokens/s", _rate),
        "bandwidth_share": ("share of bandwidth", percent),
        "generate_ttft_median_seconds": ("first token, generate()", duration),
        "generate_tpot_median_seconds": ("per token, generate()", duration),
        "over_generate": ("speed over generate()", _times),
        "decode": ("decoding", str),
        "precision": ("weight precision", str),
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
_OF_THE_DEVICE = {"peak_bytes": "device_peak_bytes"}
_SCORE = ("answers", "exact match", "95% interval")


def table(result: Result, *, short: bool = False) -> Table:
    """Every row with its figures, or with those that matter most; what does not fit says so."""
    columns = shown(result, short=short)
    head = ("case", *(label for label, _ in columns.values()), *(_SCORE if scored(result) else ()))
    return Table(head, tuple(_cells(row, columns, scored(result)) for row in reckoned(result)))


def shown(result: Result, *, short: bool = False) -> Mapping[str, tuple[str, Form]]:
    """The figures of a result's table; a short one has of a GPU's memory, as planned, all that is taken of it."""
    columns = COLUMNS[result["kind"]]
    if not short:
        return columns
    on_gpu = "cuda" in result.get("machine", {})
    names = (_OF_THE_DEVICE.get(name, name) if on_gpu else name for name in _BRIEF[result["kind"]])
    return {name: columns[name] for name in names if name in columns}


def scored(result: Result) -> bool:
    """Whether answers were scored."""
    return any("score" in row for row in result["rows"])


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
        return "settings unknown"
    if result["kind"] == "inference":
        options = result.get("options", {})
        of = options.get("run") or f"{config['model']}, random adapter of rank {config['r']}"
        return f"{of}, answers of {options['new_tokens']} tokens" if "new_tokens" in options else of
    ranks = "" if result["kind"] == "rank" else f", r {config['r']} on {config['target_modules']}"
    steps = f"{config.get('max_steps')} steps at a learning rate of {config.get('learning_rate')}"
    scored = f", {steps}, {config['score_rows']} answers" if config.get("score_rows") else ""
    return (
        f"{config['model']}, batch {config['per_device_train_batch_size']}, rows of {config['max_length']} tokens, "
        f"accumulation {config['gradient_accumulation_steps']}{ranks}{scored}"
    )


def cell(row: Row, name: str, form: Form) -> str:
    """One figure of a row; ≥ says that a search ended at its own limit, a dash that there is none."""
    if row.get(name) is None:
        return "–"
    return "≥ " * (name in row.get("capped", ())) + form(row[name])


def _cells(row: Row, columns: Mapping[str, tuple[str, Form]], scores: bool) -> tuple[str, ...]:
    if not row.get("fits"):
        size = f"{row['prompt_tokens']} tokens, batch {row['batch']}: " if "batch" in row else ""
        told = [f"does not fit: {size}{row.get('error', '')}"]
        return (row["case"], *told, *[""] * (len(columns) - 1 + scores * len(_SCORE)))
    cells = (cell(row, name, form) for name, (_, form) in columns.items())
    return (row["case"], *cells, *(_score(row.get("score", {})) if scores else ()))


def _score(found: Row) -> tuple[str, ...]:
    """How many answers were scored, the share that is right, and the interval that so many leave it in."""
    count = found.get("rows") if found.get("exact_match") is not None else None
    return (_count(count) if count else "–", *score(found))
