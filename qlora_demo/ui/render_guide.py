"""The guide's line: which stages lie behind, which is next, and what it is for.  Imports no gradio."""

from __future__ import annotations

from html import escape

from .render import problem
from .stages import STAGES, Stage, Standing


def guide(where: Standing) -> str:
    """All stages in their order, then a sentence on the next one."""
    if where.next is None:
        return ""
    stages = "".join(_stage(stage, where) for stage in STAGES)
    failed = problem(where.failed) if where.failed else ""
    return f'<ol class="guide" aria-label="From data to a report">{stages}</ol>{failed}<p>{_sentence(where)}</p>'


def _stage(stage: Stage, where: Standing) -> str:
    if where.done(stage):
        return f'<li class="done">{stage.name}<span class="unseen">, done</span></li>'
    now = ' aria-current="step"' if stage is where.next else ""
    return f"<li{now}>{stage.name}</li>"


def _sentence(where: Standing) -> str:
    return escape(where.waits or (where.next.tells if where.next else ""))
