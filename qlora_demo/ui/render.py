"""Records -> text, tables and HTML.  Imports no gradio; everything that a person or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from ..records import BEFORE, Choice, DeviceInfo, Note, TrainMetrics
from ..results.history import called, read_note, score
from ..results.tables import score_told
from ..runs import Run
from ..units import duration, memory

_RECENT_STEPS = 20
_RUN_COLUMNS = [
    "run",
    "state",
    "model",
    "data",
    "method",
    "r",
    "steps",
    "mean train loss",
    "held-out loss",
    "score",
    "tokens/s",
    "peak memory",
    "time",
    "note",
    "tags",
]


def bar(fraction: float, label: str) -> str:
    """A progress bar with its meaning in words."""
    percent = max(0.0, min(1.0, fraction)) * 100
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{percent:.0f}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="{escape(label)}"><div style="width:{percent:.1f}%"></div></div>'
    )


def status_line(device: DeviceInfo, holder: str, notes: Sequence[Note]) -> str:
    """The line at the top of the page."""
    parts = [
        escape(device.name),
        f"{memory(device.free_bytes)} of {memory(device.total_bytes)} free",
        f"in use by {escape(holder)}" if holder else "device is free",
        *map(_note, notes),
    ]
    return '<div class="status">' + "".join(f"<span>{part}</span>" for part in parts) + "</div>"


def _note(note: Note) -> str:
    if note.bad:
        return f'<span class="bad">{escape(note.text)}</span>'
    return escape(note.text) + ("" if note.fraction is None else bar(note.fraction, note.text))


def facts(values: Mapping[str, object]) -> str:
    """Names and their values, as a list."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items())
    return f'<dl class="about">{cells}</dl>'


def problem(text: str) -> str:
    """A message in the place of what it is about."""
    return f'<p class="bad">{escape(text)}</p>'


def run_label(run: Run) -> str:
    """One line that tells runs apart."""
    config = run.config
    return f"{run.id} · {config.model} · {config.dataset} · r {config.r} · {run.state.status}"


_WAITING = {"checking": "checking its data", "queued": "waiting for the device"}


def run_progress(run: Run | None, metrics: Sequence[TrainMetrics], stopping: bool = False) -> str:
    """State, bar, time left and the figures of a run; ``stopping``: it was asked to."""
    if run is None:
        return '<p class="empty">No run yet. Press <b>Start training</b>: the defaults train the bundled model.</p>'
    state, steps = run.state, [line for line in metrics if line.step_seconds is not None]
    step, total = (steps[-1].step if steps else 0), state.max_steps
    share = step / total if total else 0.0
    place = "" if state.status in BEFORE and not step else f" · step {step} of {total or '…'}"
    head = f"<b>{escape(_WAITING.get(state.status, state.status))}</b>{place}"
    if state.status == "running" and stopping:
        head += " · stopping, and saving what was trained"
    elif state.status == "running" and total and step >= total:
        rows = run.config.score_rows
        head += f" · saving{f', then answering up to {rows} held-out rows' if rows else ''}"
    sitting = [line for line in steps if line.time >= (state.started_at or 0)]
    if state.status == "running" and len(sitting) > 1 and step < total:
        head += f" · about {duration(seconds_left(sitting, total))} left"
    if state.ended and state.ended_at and (took := state.seconds(state.ended_at)) is not None:
        head += f" · took {duration(took)}"
    error = problem(state.error) if state.error else ""
    scored = score_told(state.summary.get("score")) if state.ended else ""
    score_line = f"<p>Answers to held-out rows at its end: exact match {scored}.</p>" if scored else ""
    body = bar(share, "training progress") + error + _figures(metrics) + score_line + _choices(state.choices)
    return f'<div class="run"><p>{head}</p>{body}</div>'


def run_about(run: Run, versions: dict[str, str]) -> str:
    """What was chosen, and what it ran on."""
    parts = [("Configuration", run.config.model_dump()), ("Ran on", versions)]
    return "".join(f"<p><b>{title}</b></p>{facts(values)}" for title, values in parts)


def run_folder(run: Run) -> str:
    """Where a run is kept."""
    return f"<p><b>Kept in</b></p>{facts({'folder': str(run.path)})}"


def seconds_left(steps: Sequence[TrainMetrics], total: int) -> float:
    """Steps to go times the wall time of a recent step, evaluations included."""
    recent = steps[-_RECENT_STEPS - 1 :]
    return (recent[-1].time - recent[0].time) / (len(recent) - 1) * (total - steps[-1].step)


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run."""
    return pd.DataFrame([_runs_row(run) for run in runs], columns=_RUN_COLUMNS)


def _figures(metrics: Sequence[TrainMetrics]) -> str:
    steps = [m for m in metrics if m.step_seconds is not None and m.tokens is not None]
    if not steps:
        return ""
    recent = steps[-_RECENT_STEPS:]
    seconds, tokens = sum(m.step_seconds or 0 for m in recent), sum(m.tokens or 0 for m in recent)
    heldout = [m.eval_loss for m in metrics if m.eval_loss is not None]
    cells = [
        (f"training loss, mean of {len(recent)} steps", f"{sum(m.loss or 0 for m in recent) / len(recent):.3f}"),
        ("held-out loss", f"{heldout[-1]:.3f}" if heldout else "…"),
        ("speed", f"{tokens / seconds:,.0f} tokens/s" if seconds else "…"),
        ("step", duration(seconds / len(recent))),
        ("peak memory", memory(max(m.memory_bytes or 0 for m in steps))),
    ]
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells) + "</dl>"


def _choices(choices: Sequence[Choice]) -> str:
    if not choices:
        return ""
    lines = "".join(f"<li><b>{escape(c.what)}: {escape(c.value)}</b>: {escape(c.why)}</li>" for c in choices)
    return f"<details open><summary>Chosen for this device and data</summary><ul>{lines}</ul></details>"


def _runs_row(run: Run) -> list[object]:
    config, state, summary = run.config, run.state, run.state.summary
    took, note = state.seconds(state.ended_at) if state.ended_at else None, read_note(run)
    return [
        run.id,
        state.status,
        called(config.model),
        called(config.dataset),
        config.method,
        config.r,
        summary.get("steps", ""),
        _number(summary.get("train_loss"), ".3f"),
        _number(summary.get("eval_loss"), ".3f"),
        score(run),
        _number(summary.get("tokens_per_second"), ".0f"),
        memory(summary["peak_memory_bytes"]) if summary.get("peak_memory_bytes") else "",
        "" if took is None else duration(took),
        note.text,
        ", ".join(note.tags),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
