"""Benchmarks -> HTML.  Imports no gradio."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from typing import Any

from ..benchmark.comparison import comparison, contrast
from ..benchmark.notes import notes, standing
from ..benchmark.plots import figures
from ..benchmark.tables import machine, settings, table
from ..results import tables
from ..units import duration
from .render import bar, problem

Result = Mapping[str, Any]


def label(result: Result) -> str:
    """One line that tells benchmarks apart."""
    return f"{result['id']} · {result['options'].get('run') or result['config']['model']} · {result['state']}"


def progress(result: Result | None) -> str:
    """Where a benchmark stands, or what to do where there is none."""
    if result is None:
        return '<p class="empty">Nothing measured yet: choose what to measure, then press Measure.</p>'
    if result["state"] == "failed":
        return problem(f"{standing(result)}: {result['error']}")
    if result["state"] in ("starting", "running"):
        found = result.get("progress", {"text": "starting", "fraction": 0.0})
        return f"<p>{escape(found['text'])}</p>{bar(found['fraction'], found['text'])}"
    took = result["ended_at"] - result["started_at"]
    return f"<p>{escape(standing(result))} in {duration(took)}</p>"


def unreadable(name: str) -> str:
    """What to do with a benchmark whose result is lost."""
    return problem(f"{name}: its result cannot be read; delete it.")


def result_shown(result: Result | None) -> str:
    """Settings, figures, plots, how they came about and on what."""
    if result is None:
        return ""
    plots = "".join(figures(result))
    return (
        f"<p>{escape(settings(result))}</p>{tables.html(table(result))}{plots}"
        f"<p><small>{escape(notes(result))}</small></p>{_machine(result)}"
    )


def compared(first: Result, second: Result) -> str:
    """Two results side by side, and what each was measured on."""
    found = comparison(first, second)
    if not found.rows:
        return '<p class="empty">The two results share no case; choose two of the same kind and settings.</p>'
    sides = (("first", first), ("second", second))
    told = "".join(f"<p>{name}: {escape(settings(one))}</p>{_machine(one)}" for name, one in sides)
    return f"<p>{escape(contrast(first, second))}</p>{tables.html(found)}{told}"


def _machine(result: Result) -> str:
    at = result.get("started_at")
    when = f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(at))}, " if at else ""
    return f"<p><small>Measured {when}on {escape(machine(result) or 'a machine not recorded yet')}.</small></p>"
