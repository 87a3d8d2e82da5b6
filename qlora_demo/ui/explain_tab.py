"""The Explain tab: how QLoRA works, on one layer of a real model and one update that was really trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..catalog import SHAPES, SMOLLM2
from ..config import TrainConfig, target_names
from ..errors import ConfigError, DemoError, ModelError
from ..jobs import read_result
from ..plan.memory_plan import paged_state_bytes, parse_memory, plan
from ..plan.planning import plan_training
from ..runs import Run
from ..services import Services
from . import render_explain as show
from .gate import Gate
from .listed import listed
from .render import problem

_SHAPE = "llama-2-7b"
Looked = dict[str, Any] | None
"""The update that was looked into, as the slider needs it."""
_LAYER = Path(__file__).parent.parent / "ml" / "lora_linear.py"


def build(services: Services, gate: Gate) -> SimpleNamespace:
    """Draw the tab and wire it: ``run`` for the page to refresh, ``open`` and its parts for when the tab opens."""
    parts, explain = _draw(), Explain(services)
    found = [parts.spectrum, parts.rounding, parts.nf4, parts.bits, parts.one_pass, parts.looked, parts.size]
    gate.on(parts.r.change, explain.size, [parts.r, parts.looked], parts.size, needs="visitor")
    listing = [parts.layer, parts.merging, *found]
    gate.on(parts.run.change, explain.layers, [parts.run, parts.r], listing, needs="visitor")
    gate.on(parts.layer.input, explain.forget, parts.r, found, needs="visitor")
    look = ([parts.run, parts.layer, parts.r], [*found, parts.layer])
    gate.on(parts.show.click, explain.layer, *look, needs="visitor", counted=True, show_progress="full")
    ledger = [parts.shape, parts.method, parts.card]
    for control in ledger:
        gate.on(control.change, explain.ledger, ledger, [parts.ledger, parts.paging], needs="visitor")
    opening = [parts.r, parts.looked, *ledger]
    return SimpleNamespace(
        run=parts.run, open=explain.open, inputs=opening, outputs=[parts.size, parts.ledger, parts.paging]
    )


class Explain:
    """What the tab computes; nothing is kept."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def open(self, r: int, looked: Looked, shape: str, method: str, card: str | None) -> list[str]:
        """What needs no model."""
        return [self.size(r, looked), *self.ledger(shape, method, card)]

    def size(self, r: int, looked: Looked) -> str:
        """An update's parameters at a rank, and what the rank could hold of the one that was looked into."""
        shape = SHAPES[_SHAPE]
        config = TrainConfig(gradient_accumulation_steps=2)  # so that the plan holds all gradients at once
        whole = plan(shape, config, "cuda", checkpointing=False, full=True)
        trained = [plan(shape, config.changed(method=way), "cuda", checkpointing=False) for way in ("qlora", "lora")]
        size = show.update_size((shape.hidden_size, shape.hidden_size), int(r), whole, trained)
        return size + (show.held_by_rank(int(r), looked) if looked else "")

    def forget(self, r: int) -> list[Any]:
        """What stands where one layer's figures were, once another is chosen."""
        return [show.LOOK, "", *[show.LOOK] * 3, None, self.size(r, None)]

    def layers(self, run: str | None, r: int) -> list[Any]:
        """The layers of a run's base that can be looked into, what merging did to it, and no figures of another run's.
        Nobody asked for the list: where the base is not on this disk it is empty, and why stands beside it."""
        try:
            names, missing = self.services.engine().layers(self._model(run)), ""
        except ModelError as exc:
            names, missing = [], str(exc)
        merging = show.merging(read_result(self.services.runs.get(run), "fidelity") if run else None)
        layer = gr.update(choices=names, value=self._middle(run, names) if names else None, info=missing)
        return [layer, merging, *self.forget(r)]

    def layer(self, run: str | None, name: str | None, r: int) -> list[Any]:
        """Everything about one layer, computed now; what the slider goes on with is handed to the page."""
        chosen = self.services.runs.get(run) if run else None
        engine, listed_now = self.services.engine(), gr.skip()
        if not name:
            names = engine.layers(self._model(run))
            name = self._middle(run, names)
            listed_now = gr.update(choices=names, value=name, info="")
        facts = engine.explain_layer(self._model(run), name)
        *update, looked = self._update(chosen, name) if chosen else (show.UNTRAINED, "", None)
        shown = [*update, show.nf4(facts), show.bits(facts), show.one_pass(facts)]
        return [*shown, looked, self.size(r, looked), listed_now]

    def ledger(self, shape: str, method: str, card: str | None) -> list[str]:
        """The memory of training a shape on a card, part by part; what of it pages, and what may be computed again."""
        try:
            config = TrainConfig(model=shape, method=method, max_length=512, target_modules="attention")
            size = parse_memory(card or "")
            found, kept, recomputed = (
                plan_training(self.services.settings, config.changed(gradient_checkpointing=switch), size)
                for switch in ("auto", "off", "on")
            )
        except DemoError as exc:
            return [problem(str(exc)), ""]
        except ValueError:
            return [problem(f"card: {card!r} is not allowed; give a size like 24GB"), ""]
        paged = paged_state_bytes(SHAPES[shape], config, "cuda")
        return [show.ledger(found, config), show.paging(paged, kept.chosen, recomputed.chosen)]

    def _update(self, run: Run, name: str) -> tuple[str, str, Looked]:
        try:
            found = self.services.engine().explain_update(run.id, name)
        except DemoError as exc:
            return problem(str(exc)), "", None
        return show.spectrum(found), show.rounding(found), {"run": run.id, "layer": name, "energy": found["energy"]}

    def _middle(self, run: str | None, names: list[str]) -> str:
        """The middle one of a model's layers, of those that a run has an update for."""
        wanted = target_names(self.services.runs.get(run).config.target_modules) if run else None
        adapted = [name for name in names if wanted is None or any(name.endswith(f".{one}") for one in wanted)]
        found = adapted or names
        if not found:
            raise ConfigError("layer", "the model has no linear layer; choose a run of another model")
        return found[len(found) // 2]

    def _model(self, run: str | None) -> str:
        return self.services.runs.get(run).config.model if run else SMOLLM2.name


def _draw() -> SimpleNamespace:
    parts = SimpleNamespace(looked=gr.State())
    with gr.Accordion("LoRA: a frozen layer and a thin update", open=True):
        parts.r = gr.Slider(1, 256, 8, step=1, label="Rank r", elem_id="explain-r")
        parts.size = gr.HTML(elem_id="explain-size")
        with gr.Accordion("The code of such a layer", open=False):
            gr.Code(_LAYER.read_text("utf-8"), language="python", interactive=False, elem_id="lora-linear")
    chosen: dict[str, Any] = {"scale": 3, "min_width": 240, "interactive": True}
    with gr.Row():
        parts.run = listed(label="Finished run", elem_id="explain-run", **chosen)
        parts.layer = listed(label="Layer of the base model", elem_id="explain-layer", **chosen)
        parts.show = gr.Button("Look into this layer", variant="primary", elem_id="explain", scale=1, min_width=140)
    with gr.Accordion("What was learned: the update's singular values", open=True):
        parts.spectrum = gr.HTML(show.LOOK, elem_id="spectrum")
    with gr.Accordion("NF4: sixteen levels for weights", open=True):
        parts.nf4 = gr.HTML(show.LOOK, elem_id="nf4")
    with gr.Accordion("Double quantization: bits per weight", open=True):
        parts.bits = gr.HTML(show.LOOK, elem_id="bits")
    with gr.Accordion("One pass, and what training changes", open=True):
        parts.one_pass = gr.HTML(show.LOOK, elem_id="one-pass")
    with gr.Accordion("Merging", open=True):
        parts.rounding = gr.HTML(elem_id="rounding")
        parts.merging = gr.HTML(show.merging(None), elem_id="merging")
    with gr.Accordion("The memory ledger", open=True):
        with gr.Row():
            parts.shape = gr.Dropdown(list(SHAPES), value=_SHAPE, label="Shape", elem_id="ledger-shape")
            parts.method = gr.Radio(
                ["qlora", "lora", "lora-8bit"], value="qlora", label="Method", elem_id="ledger-method"
            )
            parts.card = gr.Textbox("24GB", label="Card", elem_id="ledger-card")
        parts.ledger = gr.HTML(elem_id="ledger")
    with gr.Accordion("Paged optimizers and checkpointing", open=True):
        parts.paging = gr.HTML(elem_id="paging")
    return parts
