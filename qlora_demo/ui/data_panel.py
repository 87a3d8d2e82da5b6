"""Preflight on the page: what training would see of the chosen data, before anything is trained."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..checking import RESULT
from ..config import TrainConfig
from ..errors import DemoError, RunError
from ..jobs import read_result
from ..runs import Run, RunStore
from ..services import Services
from ..system.halt import Halt
from ..units import counted
from . import controls
from . import render_training as show
from .gate import Gate
from .render import problem
from .told import warn

_POLL_SECONDS = 0.2


def draw() -> SimpleNamespace:
    """The button and the place for what it finds."""
    button = gr.Button("Check the data", size="sm", elem_id="check-data")
    return SimpleNamespace(button=button, found=gr.HTML(elem_id="preflight"))


def wire(services: Services, parts: SimpleNamespace, chosen: controls.Controls, gate: Gate) -> None:
    """Have the button read the data that the form names."""

    def check(*values: Any) -> Iterator[str]:
        yield from look(services, controls.read(TrainConfig, list(chosen), values))

    gate.on(
        parts.button.click,
        check,
        list(chosen.values()),
        parts.found,
        needs="operator",
        trigger_mode="always_last",
        concurrency_limit=None,
    )


def look(services: Services, config: TrainConfig) -> Iterator[str]:
    """Draw how far a check is and what it finds in the end."""
    halt = Halt()
    result: dict[str, Any] = {}
    yield "<p>Reading the data</p>"
    try:
        for step in services.engine().preflight(config, halt):
            result = step.result
            yield f"<p>{step.progress.text}</p>"
    except DemoError as exc:
        yield problem(str(exc))
        raise
    finally:
        halt.set()
    yield show.preflight(result)


def follow(services: Services, made: Sequence[Run]) -> Iterator[str]:
    """Draw how far the check of started runs is, which share their data, and what it found; what is wrong but lets
    them train is told in a line.  One that was refused trained nothing: why is told, and nothing of it is kept."""
    for run in made:
        drawn = ""
        while _is_read(services, run):
            said = services.checks.progress(run.id) or "Waiting for other data to be read"
            if said != drawn:  # another start's check may draw in the same place
                yield f"<p>{said}</p>"
            drawn = said
            time.sleep(_POLL_SECONDS)
    known = [now for run in made if (now := _still(services.runs, run))]
    if not known:
        yield ""
        return
    result = read_result(known[0], RESULT)
    yield show.preflight(result) if result else problem(known[0].state.error)
    for run in known:
        if (now := _still(services.runs, run)) and now.state.refused:
            _drop(services.runs, now)
    if result and result["problems"] and not known[0].state.refused:
        found = "; ".join(f"{one['what']}: {counted(one['count'], 'row')}" for one in result["problems"])
        warn(f"{known[0].config.dataset}: {found}", "The data")


def _still(runs: RunStore, run: Run) -> Run | None:
    """The run as it is now; none where it was deleted meanwhile."""
    with contextlib.suppress(RunError):
        return runs.get(run.id)
    return None


def _is_read(services: Services, run: Run) -> bool:
    """Whether a run's check goes on, in this app or another."""
    now = _still(services.runs, run)
    return now is not None and (now.state.status == "checking" or bool(services.checks.progress(run.id)))


def _drop(runs: RunStore, run: Run) -> None:
    with contextlib.suppress(RunError, OSError):  # another app has not let go of it yet: there it stays, with why
        runs.delete(run.id)
    warn(run.state.error, "Not started")
