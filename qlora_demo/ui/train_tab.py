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

from ..config import TrainConfig
from ..errors import RunError
from ..runs import Run, RunStore
from ..services import Services
from . import controls, render
from .told import told

_GROUPS = ("Model", "Data", "Method", "Schedule")
_PLOT_POINTS = 400


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
    written = [shown[name] for name in ("run", "progress", "loss", "rate", "about", "log", "table", "seen")]

    def poll(run_id: str | None, seen: str) -> list[Any]:
        return _poll(services.runs, run_id, seen)

    def begin(*values: Any) -> list[Any]:
        config = controls.read(TrainConfig, list(chosen), values)
        if services.engine.release():
            gr.Info("The chat's models were freed to make room for training; the next prompt loads them again.")
        run = services.launcher.start(config)
        return _poll(services.runs, run.id, "")

    def stop(run_id: str | None) -> None:
        services.runs.request_stop(_named(run_id))
        gr.Info("Stopping after this step; the adapter is saved.")

    def delete(run_id: str | None) -> list[Any]:
        services.runs.delete(_named(run_id))
        return _poll(services.runs, None, "")

    start.click(told(begin), list(chosen.values()), written, show_progress="hidden", api_visibility="private")
    shown["stop"].click(told(stop), shown["run"], message, show_progress="hidden", api_visibility="private")
    shown["delete"].click(told(delete), shown["run"], written, show_progress="hidden", api_visibility="private")
    shown["run"].input(poll, read, written, show_progress="hidden", api_visibility="private")
    gr.Timer(1).tick(poll, read, written, show_progress="hidden", concurrency_limit=None, api_visibility="private")
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
    shown: dict[str, Any] = {"seen": gr.State("")}
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


def _poll(runs: RunStore, run_id: str | None, seen: str) -> list[Any]:
    """Everything the right side shows, or nothing where nothing changed since `seen`."""
    known = runs.all()
    run = _chosen(runs, known, run_id)
    now = _signature(known, run)
    if now == seen:
        return [gr.skip()] * 8
    metrics = runs.metrics(run.id) if run else []
    every = max(1, len(metrics) // _PLOT_POINTS)
    kept = [m for m in metrics if m.eval_loss is not None or m.step % every == 0]
    return [
        gr.Dropdown([(render.run_label(r), r.id) for r in known], value=run.id if run else None),
        render.run_progress(run, metrics),
        render.losses(kept),
        render.learning_rates(kept),
        render.run_about(run, runs.versions(run.id)) if run else "",
        runs.log_tail(run.id) if run else "",
        render.runs_table(known),
        now,
    ]


def _chosen(runs: RunStore, known: list[Run], run_id: str | None) -> Run | None:
    named = next((run for run in known if run.id == run_id), None)
    return named or runs.active() or (known[0] if known else None)


def _signature(known: list[Run], run: Run | None) -> str:
    states = ",".join(f"{r.id}:{r.state.status}" for r in known)
    if run is None:
        return states or "none"
    sizes = [_size(run.path / name) for name in ("metrics.jsonl", "train.log")]
    return f"{states} {run.id} {sizes} {run.state.max_steps}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _named(run_id: str | None) -> str:
    if not run_id:
        raise RunError("run: none is chosen; start one or choose it from the list")
    return run_id
