"""The Train tab: left what is chosen, right what is happening, below the runs.

The page polls run directories and holds no running state of its own: closing every tab changes nothing, and a reload,
a second tab or a restarted app finds the run again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import gradio as gr

from ..catalog import BUNDLED_MODELS, is_fetched
from ..config import TrainConfig
from ..errors import ModelError, RunError
from ..records import TrainMetrics
from ..runs import Run, RunStore
from ..services import Services
from . import controls, render
from .told import told

_GROUPS = ("Model", "Data", "Method", "Schedule")
_PLOT_POINTS = 400
_PLOT_STEPS = 20
_POLL_SECONDS = 2


def build(services: Services, page: gr.Blocks) -> None:
    """Draw the tab and wire it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            start = gr.Button("Start training", variant="primary", elem_id="start")
            chosen = _draw_controls(services)
        with gr.Column(scale=3, min_width=360):
            shown = _draw_run()
    message = gr.State("")
    read = [shown["run"], shown["seen"]]
    written = [shown[name] for name in ("run", "table", "progress", "about", "log", "loss", "rate", "seen")]

    def poll(run_id: str | None, seen: dict[str, Any]) -> list[Any]:
        _drop_refused(services.runs, run_id)
        return _poll(services.runs, run_id, seen)

    def begin(*values: Any) -> list[Any]:
        config = controls.read(TrainConfig, list(chosen), values)
        if config.model in BUNDLED_MODELS and not is_fetched(services.settings, config.model):
            raise ModelError(
                f"model: {config.model} is still being fetched; wait until the line on top no longer says so"
            )
        if services.engine.release():
            gr.Info("The chat's models were freed to make room for training; the next prompt loads them again.")
        run = services.launcher.start(config)
        return _poll(services.runs, run.id, {})

    def stop(run_id: str | None) -> None:
        services.runs.request_stop(_named(run_id))
        gr.Info("Stopping after this step; the adapter is saved.")

    def delete(run_id: str | None) -> list[Any]:
        services.runs.delete(_named(run_id))
        return _poll(services.runs, None, {})

    start.click(told(begin), list(chosen.values()), written, show_progress="hidden", api_visibility="private")
    shown["stop"].click(told(stop), shown["run"], message, show_progress="hidden", api_visibility="private")
    shown["delete"].click(told(delete), shown["run"], written, show_progress="hidden", api_visibility="private")
    shown["run"].input(poll, read, written, show_progress="hidden", api_visibility="private")
    gr.Timer(_POLL_SECONDS).tick(
        poll, read, written, show_progress="hidden", concurrency_limit=None, api_visibility="private"
    )
    page.load(poll, read, written, show_progress="hidden", api_visibility="private")


def _draw_controls(services: Services) -> controls.Controls:
    chosen: controls.Controls = {}
    for group in _GROUPS:
        with gr.Accordion(group, open=True):
            with gr.Row():
                chosen |= controls.draw(TrainConfig, group)
            if group == "Data":
                _draw_upload(services, chosen["dataset"])
    with gr.Accordion("Advanced", open=False), gr.Row():
        chosen |= controls.draw(TrainConfig, "Advanced")
    return chosen


def _draw_upload(services: Services, dataset: Any) -> None:
    upload = gr.UploadButton(
        "Upload a data file", file_types=[".jsonl", ".json", ".csv", ".parquet"], size="sm", elem_id="upload"
    )

    def keep(path: str) -> str:
        folder = services.settings.home / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(path).name}"
        shutil.copyfile(path, target)
        return str(target)

    upload.upload(told(keep), upload, dataset, api_visibility="private")


def _draw_run() -> dict[str, Any]:
    shown: dict[str, Any] = {"seen": gr.State({})}
    with gr.Row():
        shown["run"] = gr.Dropdown([], label="Run", elem_id="run", scale=4, interactive=True)
        shown["stop"] = gr.Button("Stop and save", elem_id="stop", scale=1, min_width=120)
    shown["progress"] = gr.HTML(elem_id="progress", min_height=150)
    with gr.Row():
        shown["loss"] = gr.LinePlot(
            x="step",
            y="loss",
            color="rows",
            title="Loss",
            x_title="step",
            y_title="loss (nats per token)",
            color_map=render.LOSS_COLORS,
            height=260,
        )
        shown["rate"] = gr.LinePlot(
            x="step",
            y="learning rate",
            title="Learning rate",
            x_title="step",
            y_title="learning rate",
            y_axis_format=".1e",
            height=260,
        )
    with gr.Accordion("Configuration and versions", open=False):
        shown["about"] = gr.HTML(elem_id="about")
    with gr.Accordion("Log", open=False):
        shown["log"] = gr.Textbox(show_label=False, lines=12, max_lines=12, interactive=False, elem_id="log")
    with gr.Accordion("Runs", open=True):
        shown["table"] = gr.Dataframe(render.runs_table([]), interactive=False, elem_id="runs", wrap=False)
        shown["delete"] = gr.Button("Delete the run chosen above", size="sm", elem_id="delete")
    return shown


def _poll(runs: RunStore, run_id: str | None, seen: dict[str, Any]) -> list[Any]:
    """What the right side shows, each part only where it changed since `seen`: drawing takes the trainer's time."""
    known = runs.all()
    run = _chosen(runs, known, run_id)
    metrics = runs.metrics(run.id) if run else []
    now = {
        "runs": [(r.id, r.state.status) for r in known] + [(run.id if run else "", "")],
        "run": _marks(run),
        "plots": (_marks(run)[:2], _plot_step(run, metrics)),
    }
    parts = [
        _draw_runs(known, run) if now["runs"] != seen.get("runs") else [gr.skip()] * 2,
        _draw_state(runs, run, metrics) if now["run"] != seen.get("run") else [gr.skip()] * 3,
        _draw_plots(metrics) if now["plots"] != seen.get("plots") else [gr.skip()] * 2,
    ]
    return [*(value for part in parts for value in part), now]


def _draw_runs(known: list[Run], run: Run | None) -> list[Any]:
    choices = [(render.run_label(r), r.id) for r in known]
    return [gr.Dropdown(choices, value=run.id if run else None), render.runs_table(known)]


def _draw_state(runs: RunStore, run: Run | None, metrics: list[TrainMetrics]) -> list[Any]:
    if run is None:
        return [render.run_progress(None, []), "", ""]
    about = render.run_about(run, runs.versions(run.id))
    return [render.run_progress(run, metrics), about, runs.log_tail(run.id)]


def _draw_plots(metrics: list[TrainMetrics]) -> list[Any]:
    every = max(1, len(metrics) // _PLOT_POINTS)
    kept = [m for m in metrics if m.eval_loss is not None or m.step % every == 0]
    return [render.losses(kept), render.learning_rates(kept)]


def _marks(run: Run | None) -> tuple[Any, ...]:
    if run is None:
        return ("none", "", 0, 0)
    return (run.id, run.state.status, _size(run.path / "metrics.jsonl"), _size(run.path / "train.log"))


def _plot_step(run: Run | None, metrics: list[TrainMetrics]) -> tuple[int, int]:
    """Changes with every held-out loss and with every twentieth of the run."""
    evaluated = sum(m.eval_loss is not None for m in metrics)
    total = run.state.max_steps if run else 0
    return evaluated, len(metrics) * _PLOT_STEPS // total if total else 0


def _drop_refused(runs: RunStore, run_id: str | None) -> None:
    """A run whose request was wrong trained nothing: tell why, and leave nothing of it behind."""
    run = next((run for run in runs.all() if run.id == run_id and run.state.refused and not run.alive), None)
    if run is not None:
        runs.delete(run.id)
        gr.Warning(run.state.error, duration=20, title="Not started")


def _chosen(runs: RunStore, known: list[Run], run_id: str | None) -> Run | None:
    named = next((run for run in known if run.id == run_id), None)
    return named or runs.active() or (known[0] if known else None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _named(run_id: str | None) -> str:
    if not run_id:
        raise RunError("run: none is chosen; start one or choose it from the list")
    return run_id
