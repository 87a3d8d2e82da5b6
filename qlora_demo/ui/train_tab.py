"""The Train tab: left what is chosen and its memory plan, right what is happening to a run, below every run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..catalog import BUNDLED_MODELS, is_fetched
from ..choices import refuse
from ..config import TrainConfig
from ..errors import DemoError, ModelError
from ..gpu import device_info
from ..history import pair_of, pair_tag, write_note
from ..planning import plan_training
from ..runs import Run
from ..services import Services
from . import config_panel, controls, data_panel, history_panel, run_panel
from . import render_training as show
from .told import QUIET, told

_GROUPS = ("Model", "Data", "Method", "Schedule")


def build(services: Services, page: gr.Blocks) -> None:
    """Draw the tab and wire it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            buttons = _draw_start()
            chosen = _draw_controls(services)
            command = config_panel.build(chosen)
        with gr.Column(scale=3, min_width=360):
            planned = gr.HTML(elem_id="plan")
            shown = run_panel.draw()
    history = history_panel.build(services)
    _wire_start(services, buttons, chosen, shown, history.chosen)
    run_panel.wire(services, chosen, shown, page)
    _wire_plan(services, buttons.processes, chosen, [planned, command], page)
    page.load(history.refresh, history.read, history.drawn, **QUIET)
    gr.Timer(run_panel.POLL_SECONDS).tick(history.refresh, history.read, history.drawn, concurrency_limit=None, **QUIET)


def _draw_start() -> SimpleNamespace:
    with gr.Row():
        start = gr.Button("Start training", variant="primary", elem_id="start", scale=2)
        pair = gr.Button("LoRA and QLoRA", elem_id="start-pair", scale=1, min_width=130)
        processes = gr.Number(1, label="Processes", precision=0, minimum=1, elem_id="processes", min_width=100)
    return SimpleNamespace(start=start, pair=pair, processes=processes)


def _wire_start(
    services: Services,
    buttons: SimpleNamespace,
    chosen: controls.Controls,
    shown: dict[str, Any],
    side_by_side: gr.Dropdown,
) -> None:
    written = [shown[name] for name in run_panel.WRITTEN]

    def submit(config: TrainConfig, processes: float) -> Run:
        if config.model in BUNDLED_MODELS and not is_fetched(services.settings, config.model):
            raise ModelError(
                f"model: {config.model} is still being fetched; wait until the line on top no longer says so"
            )
        plan_training(services.settings, config)  # a model that is not there is refused before anything starts
        idle = services.runs.active() is None and not services.jobs.going
        if idle and services.engine.release():
            gr.Info("The chat's models were freed to make room for training; the next prompt loads them again.")
        run = services.launcher.submit(config, int(processes or 1))
        if run.state.status == "queued":
            gr.Info(f"{run.id} waits until the device is free.")
        return run

    def begin(processes: float, *values: Any) -> list[Any]:
        run = submit(controls.read(TrainConfig, list(chosen), values), processes)
        return run_panel.poll(services, run.id, {})

    def begin_pair(processes: float, *values: Any) -> list[Any]:
        tag = pair_tag()
        configs = pair_of(controls.read(TrainConfig, list(chosen), values))
        made = [submit(config, processes) for config in configs]
        for run in made:
            write_note(run, "LoRA against QLoRA", tag)
        names = [run.id for run in made]
        return [*run_panel.poll(services, names[0], {}), gr.Dropdown(choices=names, value=names)]

    inputs = [buttons.processes, *chosen.values()]
    buttons.start.click(told(begin), inputs, written, **QUIET)
    buttons.pair.click(told(begin_pair), inputs, [*written, side_by_side], **QUIET)


def _wire_plan(
    services: Services, processes: gr.Number, chosen: controls.Controls, shown: list[gr.HTML], page: gr.Blocks
) -> None:
    """What was chosen is planned, or refused with the reason, as it is chosen; and shown as a command."""

    def plan(count: float, *values: Any) -> list[str]:
        try:
            config = controls.read(TrainConfig, list(chosen), values)
            refuse(config, device_info().kind)
            plan = show.memory_plan(plan_training(services.settings, config))
        except DemoError as exc:
            return [show.problem(str(exc)), ""]
        return [plan, show.equivalent(config, int(count or 1))]

    inputs = [processes, *chosen.values()]
    gr.on([control.change for control in inputs], plan, inputs, shown, trigger_mode="always_last", **QUIET)
    page.load(plan, inputs, shown, **QUIET)


def _draw_controls(services: Services) -> controls.Controls:
    chosen: controls.Controls = {}
    for group in _GROUPS:
        with gr.Accordion(group, open=True):
            with gr.Row():
                chosen |= controls.draw(TrainConfig, group)
            if group == "Data":
                _draw_upload(services, chosen["dataset"])
                check = data_panel.draw()
    with gr.Accordion("Advanced", open=False), gr.Row():
        chosen |= controls.draw(TrainConfig, "Advanced")
    data_panel.wire(services, check, chosen)
    return chosen


def _draw_upload(services: Services, dataset: Any) -> None:
    upload = gr.UploadButton(
        "Upload a data file", file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet"], size="sm", elem_id="upload"
    )

    def keep(path: str) -> str:
        folder = services.settings.home / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(path).name}"
        shutil.copyfile(path, target)
        return str(target)

    upload.upload(told(keep), upload, dataset, api_visibility="private")
