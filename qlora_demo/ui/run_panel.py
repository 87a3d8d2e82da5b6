"""What is happening to a run: state, progress, curves, log; stop, resume, delete, and lighter settings where it failed.

The page polls run directories and holds no running state of its own: closing every tab changes nothing, and a reload,
a second tab or a restarted app finds the run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..checking import RESULT
from ..errors import DemoError, RunError
from ..gpu import device_info
from ..jobs import read_result
from ..plan.planning import plan_training
from ..records import TrainMetrics
from ..results import plots
from ..runs import Run, RunStore
from ..services import Services
from ..visitors.access import Role
from . import controls, deletion, render
from . import render_training as show
from .gate import Gate, visitor_of
from .listed import listed, renewed

_PLOT_POINTS = 400
_PLOT_STEPS = 20
_LIGHTER = 3


def draw() -> SimpleNamespace:
    """The components; ``written`` are those that `poll` draws, in its order."""
    shown = SimpleNamespace(seen=gr.State({}))
    with gr.Row():
        shown.run = listed(label="Run", elem_id="run", scale=4, interactive=True)
        shown.stop = gr.Button("Stop and save", elem_id="stop", scale=1, min_width=120, visible=False)
        shown.resume = gr.Button("Resume", elem_id="resume", scale=1, min_width=90, visible=False)
    shown.queue = gr.HTML(elem_id="queue")
    shown.progress = gr.HTML(elem_id="progress", min_height=150)
    with gr.Row():
        shown.lighter = [
            gr.Button(visible=False, size="sm", elem_id=f"lighter-{place}", min_width=120) for place in range(_LIGHTER)
        ]
    shown.curves = gr.HTML(elem_id="curves")
    with gr.Accordion("Configuration and versions", open=False):
        shown.about = gr.HTML(elem_id="about")
    with gr.Accordion("Log", open=False) as shown.log_part:
        shown.log = gr.Textbox(show_label=False, lines=12, max_lines=12, interactive=False, elem_id="log")
    with gr.Row():
        shown.reuse = gr.Button("Use these settings again", size="sm", elem_id="reuse")
        shown.deletion = deletion.draw("Delete this run", "delete")
    shown.written = [shown.run, shown.queue, shown.progress, shown.about, shown.log, shown.stop, shown.resume]
    shown.written += [*shown.lighter, shown.curves, shown.seen]
    return shown


def wire(
    services: Services, chosen: controls.Controls, processes: gr.Number, shown: SimpleNamespace, gate: Gate
) -> SimpleNamespace:
    """Have the components follow the chosen run, whose settings the form takes when asked to; ``look`` draws
    ``shown.written`` anew, from what is ``read``."""
    read, written = [shown.run, shown.seen], shown.written

    def look(run_id: str | None, seen: dict[str, Any], request: gr.Request) -> list[Any]:
        return poll(services, run_id, seen, visitor_of(services.access, request).role)

    def stop(run_id: str | None) -> None:
        services.runs.request_stop(_named(run_id))
        gr.Info("Stopping after this step; the adapter is saved.")

    def resume(run_id: str | None) -> list[Any]:
        return poll(services, services.launcher.resume(_named(run_id)).id, {}, "operator")

    def delete(run_id: str) -> list[Any]:
        services.runs.delete(run_id)
        return poll(services, None, {}, "operator")

    def reuse(run_id: str | None) -> list[Any]:
        run = services.runs.get(_named(run_id))
        return [run.state.processes, *controls.fill(run.config, list(chosen))]

    form = [processes, *chosen.values()]
    gate.only(shown.log_part, "operator")
    gate.on(shown.stop.click, stop, shown.run, needs="operator")
    gate.on(shown.resume.click, resume, shown.run, written, needs="operator")
    deletion.wire(shown.deletion, shown.run, delete, written, gate)
    gate.on(shown.reuse.click, reuse, shown.run, form, needs="operator")
    for place, button in enumerate(shown.lighter):
        lighten = lightening(services, list(chosen), place)
        gate.on(button.click, lighten, shown.run, form, needs="operator")
    gate.on(shown.run.input, look, read, written, needs="visitor")
    return SimpleNamespace(look=look, read=read)


def poll(services: Services, run_id: str | None, seen: dict[str, Any], role: Role) -> list[Any]:
    """What the right side shows, each part only where it changed since `seen`: drawing takes the trainer's time."""
    runs = services.runs
    known = runs.all()
    run = _chosen(runs, known, run_id)
    metrics = runs.metrics(run.id) if run else []
    now = {
        "runs": [(r.id, r.state.status) for r in known] + [(run.id if run else "", "")],
        "run": (role, *_marks(run), services.checks.progress(run.id) if run else ""),
        "plots": (_marks(run)[:2], _plot_step(run, metrics)),
    }
    parts = [
        _draw_runs(known, run, run_id if seen else None) if now["runs"] != seen.get("runs") else [gr.skip()] * 2,
        _draw_state(services, run, metrics, role) if now["run"] != seen.get("run") else [gr.skip()] * (5 + _LIGHTER),
        _draw_plots(metrics) if now["plots"] != seen.get("plots") else [gr.skip()],
    ]
    return [*(value for part in parts for value in part), now]


def _draw_runs(known: list[Run], run: Run | None, chosen: str | None) -> list[Any]:
    """The list and the queue."""
    choices = [(render.run_label(r), r.id) for r in known]
    waiting = [r for r in known if r.state.status == "queued"]
    return [renewed(choices, run.id if run else None, chosen), show.queue(waiting)]


def _draw_state(services: Services, run: Run | None, metrics: list[TrainMetrics], role: Role) -> list[Any]:
    lighter = run.state.lighter if run else ()
    buttons = [
        gr.Button(show.lighter_label(lighter[at]), visible=True) if at < len(lighter) else gr.Button(visible=False)
        for at in range(_LIGHTER)
    ]
    if run is None:
        return [render.run_progress(None, []), "", "", *[gr.Button(visible=False)] * 2, *buttons]
    at = run.resumable_from
    resume = gr.Button(f"Resume from step {at}" if at else "Start it again", visible=run.resumable)
    stop = gr.Button(visible=not run.state.ended)
    reading = f"<p>{escape(services.checks.progress(run.id))}</p>"
    about, log, told = _told(services, run, role)
    progress = render.run_progress(told, metrics, _stopping(run)) + reading + _planned(services, run)
    return [progress, about, log, stop, resume, *buttons]


def _told(services: Services, run: Run, role: Role) -> tuple[str, str, Run]:
    """What the run is about, its log, and the run itself: to a visitor without folder, log and rows of the data."""
    about, data = render.run_about(run, services.runs.versions(run.id)), read_result(run, RESULT)
    found = (
        f"<p><b>Data</b></p>{show.preflight(data if role == 'operator' else data | {'rendered': []})}" if data else ""
    )
    if role == "operator":
        return about + render.run_folder(run) + found, services.runs.log_tail(run.id), run
    return about + found, "", replace(run, state=replace(run.state, error=run.state.cause))


def _planned(services: Services, run: Run) -> str:
    """The plan's total beside the measured peak, once there is one."""
    measured = run.state.summary.get("peak_memory_bytes")
    if not measured:
        return ""
    what = "GPU memory allocated" if device_info().kind == "cuda" else "resident memory of the process"
    try:
        switch = "on" if run.state.checkpointing else "off"
        config = run.config.changed(gradient_checkpointing=switch)
        planned = plan_training(services.settings, config).chosen.total_bytes
    except DemoError as exc:
        return render.problem(str(exc))
    return show.planned_and_measured(planned, config.max_length, measured, what)


def _draw_plots(metrics: list[TrainMetrics]) -> list[Any]:
    every = max(1, len(metrics) // _PLOT_POINTS)
    kept = [m for m in metrics if m.eval_loss is not None or m.step % every == 0]
    return [f'<div class="sides">{"".join(plots.curves(kept))}</div>']


def _marks(run: Run | None) -> tuple[Any, ...]:
    if run is None:
        return ("none", "", 0, 0, False)
    return (run.id, run.state.status, _size(run.path / "metrics.jsonl"), _size(run.path / "train.log"), _stopping(run))


def _stopping(run: Run) -> bool:
    return (run.path / "stop").exists() and not run.state.ended


def _plot_step(run: Run | None, metrics: list[TrainMetrics]) -> tuple[int, int]:
    """Changes with every held-out loss and with every twentieth of the run."""
    evaluated = sum(m.eval_loss is not None for m in metrics)
    total = run.state.max_steps if run else 0
    return evaluated, len(metrics) * _PLOT_STEPS // total if total else 0


def _chosen(runs: RunStore, known: list[Run], run_id: str | None) -> Run | None:
    named = next((run for run in known if run.id == run_id), None)
    return named or runs.active() or (known[0] if known else None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _named(run_id: str | None) -> str:
    if not run_id:
        raise RunError("run: none is chosen; start one or choose it from the list")
    return run_id


def lightening(services: Services, names: list[str], place: int) -> Callable[[str | None], list[Any]]:
    """Fill the form with a run's config and one of the lighter settings it was told."""

    def apply(run_id: str | None) -> list[Any]:
        run = services.runs.get(_named(run_id))
        if place >= len(run.state.lighter):
            raise RunError(f"run {run.id}: is {run.state.status} now, and nothing lighter is proposed")
        lighter = run.config.changed(**run.state.lighter[place].changes)
        return [run.state.processes, *controls.fill(lighter, names)]

    return apply
