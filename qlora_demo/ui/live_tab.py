"""The Live tab, for operators: what the machine, the queue, the runs and the jobs are doing now."""

from __future__ import annotations

import shutil

import gradio as gr

from ..gpu import device_info
from ..services import Services
from ..visitors.visits import VISITS
from . import render_live as show
from .gate import Gate, visitor_of

_POLL_SECONDS = 5
_NOT_SIGNED_IN = '<p class="bad">This is for operators, and you are not signed in, or no longer; reload the page.</p>'


def build(services: Services, tab: gr.Tab, gate: Gate) -> None:
    """Draw the tab and wire it: it looks when it is opened, and now and then while it is open.

    A page may stay open longer than its session: a timer that only operators' pages may let tick would tell it so
    every time.
    """
    live, timer = gr.HTML(elem_id="live"), gr.Timer(_POLL_SECONDS)

    def look(request: gr.Request) -> str:
        if visitor_of(services.access, request).role != "operator":
            return _NOT_SIGNED_IN
        runs, home = services.runs, services.settings.home
        active = runs.active()
        metrics = runs.metrics(active.id) if active else []
        return show.live(
            show.Live(
                device=device_info(),
                holder=services.holder(),
                resident=services.engine.resident(),
                waiting=services.waiting.waiting,
                answering=services.waiting.answering,
                requests=services.access.requests,
                idle_seconds=VISITS.idle_seconds(),
                active=active,
                step=metrics[-1].step if metrics else 0,
                queued=tuple(runs.waiting("checking", "queued")),
                kept=len(runs.names()),
                job=services.jobs.last,
                disk_free_bytes=shutil.disk_usage(home).free,
                limits=services.settings.limits,
            )
        )

    gate.guard(timer)
    gate.on(tab.select, look, None, live, needs="visitor")
    gate.on(timer.tick, look, None, live, needs="visitor", concurrency_limit=None)
