"""Preflight on the page: what training would see of the chosen data, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..config import TrainConfig
from ..halt import Halt
from ..services import Services
from . import controls
from . import render_training as show
from .gate import Gate


def draw() -> SimpleNamespace:
    """The button and the place for what it finds."""
    button = gr.Button("Check the data", size="sm", elem_id="check-data")
    return SimpleNamespace(button=button, found=gr.HTML(elem_id="preflight"))


def wire(services: Services, parts: SimpleNamespace, chosen: controls.Controls, gate: Gate) -> None:
    """Have the button read the data that the form names."""

    def check(*values: Any) -> Iterator[str]:
        config, halt = controls.read(TrainConfig, list(chosen), values), Halt()
        result: dict[str, Any] = {}
        try:
            for step in services.engine().preflight(config, halt):
                result = step.result
                yield f"<p>{step.progress.text}</p>"
        finally:
            halt.set()
        yield show.preflight(result)

    gate.on(parts.button.click, check, list(chosen.values()), parts.found, needs="operator")
