"""Two results of a benchmark side by side: what they share, what differs, and no ratio of what is not comparable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..config import TrainConfig
from ..knobs import Knobs, knob, shelf
from ..results.tables import Table
from ..units import memory
from .config import BenchmarkConfig
from .reckoned import Result, Row
from .tables import COLUMNS, cell

_HEAD = ("case", "figure", "first", "second", "ratio")
_FIGURES = {
    "training": ("peak_bytes", "step_median_seconds", "tokens_per_second"),
    "rank": ("peak_bytes", "step_median_seconds", "tokens_per_second"),
    "frontier": ("longest_row", "largest_batch"),
    "inference": ("ttft_median_seconds", "tpot_median_seconds", "tokens_per_second"),
}
_BASE = ("method", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
_ROW = ("model", "max_length", "lora_dropout", "use_dora", "optim", *_BASE[1:])
_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "packing", "neftune_noise_alpha")
_WAY = ("method", "init_lora_weights", "gradient_checkpointing", "score_rows")
_CONFIG = {
    "training": (*_ROW, *_STEP, "r", "target_modules"),
    "rank": (*_ROW, *_STEP, *_WAY),
    "frontier": (*_ROW, "r", "target_modules"),
    "inference": ("model", "r", "target_modules", "use_dora", *_BASE),
}
"""The training settings that a kind's figures depend on and its cases do not set."""
_SCORED = ("dataset", "dataset_config", "dataset_split", "columns", "loss_on", "max_steps")
_OPTIONS = {"training": (), "rank": (), "frontier": ("gpu_memory",), "inference": ("run", "new_tokens")}
_TOLD = {
    "training": ("steps",),
    "rank": ("steps", "ranks", "targets"),
    "frontier": (),
    "inference": ("repeats", "prompt_tokens", "batch_sizes", "variants"),
}
"""The options by which more or less is measured, and the same."""


@dataclass(frozen=True)
class Difference:
    """A setting in which two results differ; ``decides``: a figure of one is no measure of the other's."""

    label: str
    first: str
    second: str
    decides: bool


def comparison(older: Result, newer: Result) -> Table:
    """The cases that two results of one kind share: each figure of both, and newer over older where what was measured
    is the same."""
    if older["kind"] != newer["kind"]:
        return Table(_HEAD, ())
    theirs = {_key(row): row for row in newer["rows"]}
    comparable = not any(one.decides for one in differences(older, newer))
    rows = [
        (_title(row), *compared)
        for row in older["rows"]
        if _key(row) in theirs
        for compared in _ratios(row, theirs[_key(row)], older["kind"], comparable)
    ]
    return Table(_HEAD, tuple(rows))


def differences(older: Result, newer: Result) -> list[Difference]:
    """The settings that matter to two results of one kind, where they differ."""
    kind = older["kind"]
    found = [
        *_differing(TrainConfig, "config", _config_fields(older, newer), older, newer),
        *_differing(BenchmarkConfig, "options", _OPTIONS[kind], older, newer),
    ]
    return [Difference(*one, True) for one in found] + [
        Difference(*one, False) for one in _differing(BenchmarkConfig, "options", _TOLD[kind], older, newer)
    ]


def contrast(older: Result, newer: Result) -> str:
    """The settings in which two results of one kind differ, in a sentence; empty where they do not."""
    found = differences(older, newer)
    if not found:
        return ""
    named = "; ".join(f"{one.label}: {one.first} versus {one.second}" for one in found)
    return f"Their settings differ. {named}." + " So no ratio is given." * any(one.decides for one in found)


def _config_fields(older: Result, newer: Result) -> tuple[str, ...]:
    kind = older["kind"]
    if kind == "inference" and any(one.get("options", {}).get("run") for one in (older, newer)):
        return ()
    scored = any(one.get("config", {}).get("score_rows") for one in (older, newer))
    return (*_CONFIG[kind], *(_SCORED if kind == "rank" and scored else ()))


def _differing(
    knobs: type[Knobs], part: str, names: Iterable[str], older: Result, newer: Result
) -> Iterable[tuple[str, str, str]]:
    for name in names:
        first, second = (_value(knobs, part, name, one) for one in (older, newer))
        if first != second:
            yield shelf(knobs, name)["label"], first, second


def _value(knobs: type[Knobs], part: str, name: str, result: Result) -> str:
    """A setting as text; one that a file of before does not know was what is the default now."""
    held = {row["budget_bytes"] for row in result["rows"] if name == "gpu_memory" and row.get("budget_bytes")}
    if held:
        return ", ".join(map(memory, sorted(held)))
    found = result.get(part)
    return str(found.get(name, knob(knobs, name).default)) or "none" if found else "unknown"


def _key(row: Row) -> tuple[Any, ...]:
    return row["case"], row.get("prompt_tokens"), row.get("batch")


def _title(row: Row) -> str:
    size = f", {row['prompt_tokens']} tokens, batch {row['batch']}" if "batch" in row else ""
    return f"{row['case']}{size}"


def _ratios(older: Row, newer: Row, kind: str, comparable: bool) -> Iterable[tuple[str, ...]]:
    alike = len({row["precision"] for row in (older, newer) if "precision" in row}) < 2
    for name in _FIGURES[kind]:
        label, form = COLUMNS[kind][name]
        before, after = older.get(name), newer.get(name)
        if before and after:
            capped = name in (*older.get("capped", ()), *newer.get("capped", ()))
            ratio = f"{after / before:.2f}" if comparable and alike and not capped else "–"
            yield label, cell(older, name, form), cell(newer, name, form), ratio
