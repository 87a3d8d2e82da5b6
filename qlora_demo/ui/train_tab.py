"""The Train tab: left what is chosen and its memory plan, right what is happening to a run, below every run."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..catalog import BUNDLED_MODELS, is_fetched
from ..config import TrainConfig
from ..errors import DemoError, ModelError
from ..launcher import refuse_here
from ..plan.planning import plan_training
from ..records import BEFORE
from ..results.history import pair_of, pair_tag, write_note
from ..runs import Run
from ..services import Services
from ..stored import require_room
from ..system.disk import copy_whole
from ..upkeep.dispatch import Dispatcher
from . import config_panel, controls, data_panel, history_panel, render, run_panel
from . import render_training as show
from .gate import Gate, visitor_of
from .listed import renewed

_GROUPS = ("Model", "Data", "Method", "Schedule")
_MORE = {"Data": "More about the data", "Method": "More about the method"}
"""What is rarely chosen, folded away below the group it belongs to."""
_PROCESSES = "That train together, one for each GPU (default 1)"
_POLL_SECONDS = 2
_DOUBLE_CLICK_SECONDS = 1.0
_AT_ONCE: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": None}
"""What is started while another start's data is read is a run at once too, whoever starts it."""


@dataclass
class Pressed:
    """When a page last started something."""

    at: float = -math.inf

    def twice(self) -> bool:
        """Count one more; whether it is the second click of a double one."""
        before, self.at = self.at, time.monotonic()
        return self.at - before < _DOUBLE_CLICK_SECONDS


def build(services: Services, page: gr.Blocks, tab: gr.Tab, gate: Gate) -> None:
    """Draw the tab and wire it: it looks when it is opened, and now and then while it is open."""
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            parts = _draw_start()
            chosen, parts.processes, parts.found = _draw_controls(services, gate)
            command = config_panel.build(chosen, gate)
        with gr.Column(scale=3, min_width=360):
            planned = gr.HTML(elem_id="plan")
            shown = run_panel.draw()
    history = history_panel.build(services, gate)
    parts.written, parts.side_by_side = shown.written, history.chosen
    _wire_start(services, parts, chosen, gate)
    panel = run_panel.wire(services, chosen, parts.processes, shown, gate)
    _wire_plan(services, {"processes": parts.processes, **chosen}, [planned, command], page, gate)

    def refresh(run: str | None, seen: Any, listed: Any, names: list[str], request: gr.Request) -> list[Any]:
        return [*panel.look(run, seen, request), *history.refresh(listed, names)]

    # One call for both: a page's browser goes through all it shows at each answer.  A new page opens this tab first.
    for trigger in (tab.select, gr.Timer(_POLL_SECONDS).tick):
        read, drawn = [*panel.read, *history.read], [*shown.written, *history.drawn]
        gate.on(trigger, refresh, read, drawn, needs="visitor", concurrency_limit=None)


def _draw_start() -> SimpleNamespace:
    with gr.Row():
        start = gr.Button("Start training", variant="primary", elem_id="start")
        pair = gr.Button("LoRA and QLoRA", elem_id="start-pair")
    return SimpleNamespace(start=start, pair=pair)


def _wire_start(services: Services, parts: SimpleNamespace, chosen: controls.Controls, gate: Gate) -> None:
    def submit(configs: Sequence[TrainConfig], processes: float) -> list[Run]:
        """Refuse what this machine cannot do; the runs, which share model and data, are there from now on."""
        config = configs[0]
        if config.model in BUNDLED_MODELS and not is_fetched(services.settings, config.model):
            raise ModelError(
                f"model: {config.model} is still being fetched; wait until the line on top no longer says so"
            )
        for one in configs:
            refuse_here(one, int(processes or 1))
            plan_training(services.settings, one)  # a model that is not there is refused before anything starts
        gr.Info("Reading the data as training would; it starts when nothing is wrong with it.")
        return services.checks.submit(configs, int(processes or 1))

    def follow(made: Sequence[Run]) -> Iterator[list[Any]]:
        """Draw the check and what came of it.  Nothing but the drawing depends on this page being open, and the panel
        is left to its own polling: another run may have been chosen meanwhile."""
        left = [gr.skip()] * len(parts.written)
        yield [gr.skip(), *run_panel.poll(services, made[0].id, {}, "operator")]
        for drawn in data_panel.follow(services, made):
            yield [drawn, *left]
        _have_begun(services, [run.id for run in made])

    def begin(pressed: Pressed, processes: float, *values: Any) -> Iterator[list[Any]]:
        if pressed.twice():
            return
        config = controls.read(TrainConfig, list(chosen), values)
        yield from follow(submit([config], processes))

    def begin_pair(pressed: Pressed, processes: float, *values: Any) -> Iterator[list[Any]]:
        if pressed.twice():
            return
        tag = pair_tag()
        config = controls.read(TrainConfig, list(chosen), values)
        larger = config.changed(method="lora", init_lora_weights="default")
        configs = pair_of(config, plan_training(services.settings, larger).chosen.checkpointing)
        made = submit(configs, processes)
        for run in made:
            write_note(run, "LoRA against QLoRA", tag)
        for drawn in follow(made):
            yield [*drawn, gr.skip()]
        known = services.runs.all()
        if kept := [run.id for run in made if run.id in [one.id for one in known]]:
            choices = [(render.run_label(one), one.id) for one in known]
            yield [*[gr.skip()] * (1 + len(parts.written)), renewed(choices, kept, None)]

    inputs = [gr.State(Pressed()), parts.processes, *chosen.values()]
    drawn = [parts.found, *parts.written]
    gate.on(parts.start.click, begin, inputs, drawn, needs="operator", **_AT_ONCE)
    gate.on(parts.pair.click, begin_pair, inputs, [*drawn, parts.side_by_side], needs="operator", **_AT_ONCE)


def _have_begun(services: Services, made: Sequence[str]) -> None:
    """Start what can start, now; what was freed for it and what has to wait is told."""
    held = bool(services.engine.resident())
    Dispatcher(services).look()
    if held and not services.engine.resident():
        gr.Info("The chat's models were freed to make room for training; the next prompt loads them again.")
    for run in services.runs.waiting(*BEFORE):
        if run.id in made:
            gr.Info(f"{run.id} waits until the device is free.")


def _wire_plan(services: Services, form: controls.Controls, shown: list[gr.HTML], page: gr.Blocks, gate: Gate) -> None:
    """What was chosen is planned, or refused with the reason, as it is chosen; and shown as a command.  One listener
    for opening and choosing: of two, the opening's plan could come last and stand beside another choice."""
    names = list(form)[1:]

    def plan(request: gr.Request, count: float, *values: Any) -> list[str]:
        """A visitor could name any folder or hub id of a model: theirs is the plan of the defaults."""
        if visitor_of(services.access, request).role != "operator":
            count, values = 1, tuple(controls.fill(TrainConfig(), names))
        try:
            config = controls.read(TrainConfig, names, values)
            refuse_here(config, int(count or 1))
            drawn = show.memory_plan(plan_training(services.settings, config))
        except DemoError as exc:
            return [render.problem(str(exc)), ""]
        return [drawn, show.equivalent(config, int(count or 1))]

    inputs = list(form.values())
    events = [page.load, *(control.change for control in inputs)]
    gate.guard(*inputs)
    gate.on(events, plan, inputs, shown, needs="visitor", trigger_mode="always_last", concurrency_limit=None)


def _draw_controls(services: Services, gate: Gate) -> tuple[controls.Controls, gr.Number, gr.HTML]:
    """The form, how many processes train, and where what is found in the data is drawn."""
    chosen: controls.Controls = {}
    for group in _GROUPS:
        with gr.Accordion(group, open=True):
            with gr.Row():
                chosen |= controls.draw(TrainConfig, group)
            if more := _MORE.get(group):
                with gr.Accordion(more, open=False), gr.Row():
                    chosen |= controls.draw(TrainConfig, more)
            if group == "Data":
                _draw_upload(services, chosen["dataset"], gate)
                check = data_panel.draw()
    with gr.Accordion("Advanced", open=False), gr.Row():
        chosen |= controls.draw(TrainConfig, "Advanced")
        processes = gr.Number(1, label="Processes", info=_PROCESSES, precision=0, minimum=1, elem_id="processes")
    data_panel.wire(services, check, chosen, gate)
    return chosen, processes, check.found


def _draw_upload(services: Services, dataset: Any, gate: Gate) -> None:
    upload = gr.UploadButton(
        "Upload a data file", file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet"], size="sm", elem_id="upload"
    )

    def keep(path: str) -> str:
        uploads = services.settings.uploads
        require_room(services.settings.home, services.settings.limits)
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        target = uploads / f"{stamp}-{Path(path).name}"
        copy_whole(Path(path), target)
        return str(target)

    gate.on(upload.upload, keep, upload, dataset, needs="operator", show_progress="full")
