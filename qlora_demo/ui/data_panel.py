"""Preflight on the page: what training would see of the chosen data, before anything is trained."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..config import TrainConfig
from ..errors import DataError, DemoError
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
        yield from look(services, controls.read(TrainConfig, list(chosen), values))

    gate.on(parts.button.click, check, list(chosen.values()), parts.found, needs="operator")


def look(services: Services, config: TrainConfig) -> Generator[str, None, dict[str, Any]]:
    """Draw how far the check is and what it finds in the end, which is returned as well."""
    halt = Halt()
    result: dict[str, Any] = {}
    yield "<p>Reading the data</p>"
    try:
        for step in services.engine().preflight(config, halt):
            result = step.result
            yield f"<p>{step.progress.text}</p>"
    except DemoError as exc:
        yield show.problem(str(exc))
        raise
    finally:
        halt.set()
    yield show.preflight(result)
    return result


def require_usable(services: Services, config: TrainConfig) -> Iterator[str]:
    """Draw the same before a start; raises `DataError` for what must be mended, and tells the rest in a line."""
    result = yield from look(services, config)
    if result["fatal"]:
        raise DataError(f"dataset: {result['fatal']}")
    if result["problems"]:
        found = "; ".join(f"{one['count']:,} rows {one['what']}" for one in result["problems"])
        gr.Warning(f"{config.dataset}: {found}", duration=20, title="The data")
