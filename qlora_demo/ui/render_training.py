"""The memory plan, the data's preflight and runs side by side -> HTML.  Imports no gradio; text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..config import TrainConfig
from ..plan.alternatives import FASTER, Comparison, Passes
from ..plan.memory_plan import MemoryPlan
from ..presets import command_line, config_difference
from ..records import Lighter, TrainMetrics
from ..results import plots, tables
from ..runs import Run
from ..units import counted, memory, percent

_COLOURS = {
    "4-bit weights": "#3b82f6",
    "8-bit weights": "#3b82f6",
    "16-bit weights": "#d97706",
    "quantization constants": "#60a5fa",
    "16-bit leftovers": "#f59e0b",
    "one layer dequantized": "#0891b2",
    "adapters": "#059669",
    "gradients": "#65a30d",
    "optimizer state": "#84cc16",
    "activations": "#8b5cf6",
    "adapters' activations": "#a78bfa",
    "logits": "#db2777",
    "fixed overhead": "#6b7280",
    "margin": "#9ca3af",
}
"""Of every part a plan can have."""
WAYS = {"qlora": "QLoRA, 4 bit", "lora": "LoRA, 16 bit", "lora-8bit": "LoRA, 8 bit", "full": "full fine-tuning"}
KERNELS = {
    "fused": "Layers and loss run on fused kernels",
    "triton": "The loss runs on fused kernels, the layers do not",
    "torch": "Neither layers nor loss run on fused kernels",
}
_SMOOTH = 5


def memory_plan(found: Comparison) -> str:
    """The chosen way's parts as a stacked bar against the device, and what else would take."""
    chosen, most = found.chosen, max(found.device_bytes, found.chosen.total_bytes)
    verdict = "fits" if found.fits else "does not fit"
    kind = "" if found.fits else ' class="bad"'
    head = (
        f"<p{kind}><b>{memory(chosen.total_bytes)} of {memory(found.device_bytes)}: {verdict}.</b> "
        f"{chosen.trainable_parameters:,} of {chosen.all_parameters:,} parameters are trained "
        f"({percent(chosen.trainable_parameters / chosen.all_parameters)}).</p>"
    )
    return f'<div class="plan">{head}{_bar(chosen, most)}{_reach(found)}{_others(found)}</div>'


def planned_and_measured(planned: int, tokens: int, measured: int, what: str) -> str:
    """The plan's total, which is for rows of `tokens` tokens, beside a run's peak."""
    return (
        f"<p>peak memory: planned {memory(planned)} for rows of {tokens:,} tokens, measured {memory(measured)} on the "
        f"actual rows ({escape(what)})</p>"
    )


def equivalent(config: TrainConfig, processes: int) -> str:
    """The command that trains the same."""
    return f"<p>The equivalent command:</p><pre>{escape(command_line(config, processes))}</pre>"


def preflight(found: Mapping[str, Any]) -> str:
    """Counts, problems with their first rows, lengths, and how rows are rendered: what is trained in colour."""
    lengths, mapping = found["lengths"], ", ".join(f"{ours} = {theirs}" for ours, theirs in found["mapping"].items())
    head = (
        f"<p><b>{counted(found['rows'], 'row')}</b>, columns read as {escape(mapping) or '–'}. Tokens per row: "
        f"mean {lengths['mean']:,.0f}, median {lengths['median']:,}, p95 {lengths['p95']:,}, "
        f"longest {lengths['longest']:,}; max_length is {found['max_length']:,}.</p>"
    )
    if not found["rows"]:
        return head + _problems(found["problems"])
    bins = {f"{top:,}": {"rows": float(count)} for top, count in lengths["histogram"]}
    limit = found["max_length"] / lengths["histogram"][0][0] - 0.5
    plot = plots.bars("Length of rows", "rows", bins, "tokens, up to", ("max_length", limit))
    return head + _problems(found["problems"]) + plot + _first_rows(found)


def lighter_label(one: Lighter) -> str:
    """What a button that applies a lighter setting says."""
    changes = ", ".join(f"{name} {value}" for name, value in one.changes.items())
    return f"{changes}: {memory(one.saves_bytes)} less"


def queue(waiting: Sequence[Run]) -> str:
    """Who waits for the device, in order."""
    if not waiting:
        return ""
    names = "".join(
        f"<li>{escape(run.id)}: {escape(run.config.model)}, {escape(run.config.method)}</li>" for run in waiting
    )
    return f'<div class="run"><p>Waiting for the device:</p><ol>{names}</ol></div>'


def overlay(runs: Sequence[tuple[str, Sequence[TrainMetrics]]]) -> str:
    """Training and held-out losses of several runs, by step."""
    trained = {name: _smooth([(m.step, m.loss) for m in lines if m.loss is not None]) for name, lines in runs}
    heldout = {name: [(m.step, m.eval_loss) for m in lines if m.eval_loss is not None] for name, lines in runs}
    wanted = ((f"Training loss, mean of {_SMOOTH} steps", trained), ("Held-out loss", heldout))
    drawn = ((title, {name: points for name, points in series.items() if points}) for title, series in wanted)
    return "".join(plots.lines(title, "step", "loss (nats per token)", series) for title, series in drawn if series)


def difference(left: Run, right: Run) -> str:
    """The fields in which two runs' configs differ."""
    found = config_difference(left.config, right.config)
    rows = tuple((name, str(ours), str(theirs)) for name, (ours, theirs) in found.items())
    if not rows:
        return "<p>Both runs have the same configuration.</p>"
    return tables.html(tables.Table(("field", left.id, right.id), rows))


def _bar(plan: MemoryPlan, most: int) -> str:
    key = "".join(
        f'<span><i style="background:{_COLOURS[item.name]}"></i>{escape(item.name)} {memory(item.bytes)}</span>'
        for item in plan.items
        if item.bytes > most / 200
    )
    return f'{_stack(plan, most)}<div class="key">{key}</div>'


def _stack(plan: MemoryPlan, most: int) -> str:
    parts = "".join(
        f'<i style="width:{100 * item.bytes / most:.2f}%;background:{_COLOURS[item.name]}" '
        f'title="{escape(item.name)}: {memory(item.bytes)}"></i>'
        for item in plan.items
    )
    label = f"{WAYS[plan.way]}: {memory(plan.total_bytes)} of {memory(most)}"
    return f'<div class="stack" role="img" aria-label="{label}">{parts}</div>'


def _reach(found: Comparison) -> str:
    recomputed = f" With checkpointing: {memory(found.checkpointed_bytes)}."
    if found.chosen.checkpointing:
        recomputed = " Activations are recomputed (checkpointing)."
    if found.chosen.kernels:
        recomputed += f" {KERNELS[found.chosen.kernels]}."
    if not found.largest_batch:
        return f"<p>Not even one row of this length fits.{recomputed}</p>"
    return (
        f"<p>At most {found.largest_batch:,} rows in a batch at this length, or rows of {found.longest_row:,} tokens "
        f"at this batch size.{recomputed}</p>{_passes(found.fewer_passes)}"
    )


def _passes(fewer: Passes | None) -> str:
    if not fewer:
        return ""
    return (
        f"<p>Batch size {fewer.rows:,} with accumulation {fewer.count:,} is the same step and also fits "
        f"({memory(fewer.total_bytes)}): {FASTER}.</p>"
    )


def _others(found: Comparison) -> str:
    plans = (found.chosen, *found.others)
    most = max(plan.total_bytes for plan in plans)
    rows = "".join(
        f"<div><span>{WAYS[plan.way]}</span>{_stack(plan, most)}<span>{memory(plan.total_bytes)}</span></div>"
        for plan in plans
    )
    return f'<div class="latency"><div>{rows}</div></div>{"".join(map(_items, plans))}'


def _items(plan: MemoryPlan) -> str:
    rows = tuple((item.name, memory(item.bytes), item.how) for item in plan.items)
    table = tables.html(tables.Table(("part", "memory", "computed as"), rows))
    return f"<details><summary>Every part of {WAYS[plan.way]}</summary>{table}</details>"


def _problems(problems: Sequence[Mapping[str, Any]]) -> str:
    if not problems:
        return '<p class="good">No problems found.</p>'
    lines = "".join(
        f'<li class="{"bad" if one["fatal"] else ""}"><b>{escape(_told(one))}</b>'
        f"{' (must be fixed)' if one['fatal'] else ''}: {escape('; '.join(one['rows']))}</li>"
        for one in problems
    )
    return f"<ul>{lines}</ul>"


def _told(one: Mapping[str, Any]) -> str:
    what = one["what"]
    return f"{what[:1].upper()}{what[1:]}: {counted(one['count'], 'row')}"


def _first_rows(found: Mapping[str, Any]) -> str:
    turns = (
        " Each assistant turn is trained on its own; the last one is shown." if found["loss_on"] == "completion" else ""
    )
    head = (
        '<p>The first rows as they are rendered: <mark class="new">trained</mark>, <span class="masked">masked</span>.'
        f"{turns}</p>"
    )
    return head + "".join(_rendered(one) for one in found["rendered"]) if found["rendered"] else ""


def _rendered(pieces: Sequence[Sequence[Any]]) -> str:
    marked = "".join(
        f'<mark class="new">{escape(text)}</mark>' if trained else f'<span class="masked">{escape(text)}</span>'
        for text, trained in pieces
    )
    return f'<pre class="rendered">{marked}</pre>'


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    return [
        (step, sum(value for _, value in points[max(0, at + 1 - _SMOOTH) : at + 1]) / min(_SMOOTH, at + 1))
        for at, (step, _) in enumerate(points)
    ]
