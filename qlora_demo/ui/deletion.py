"""Deleting in two presses: the second button names what it deletes, whatever the page has chosen by then."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..errors import RequestError
from .gate import Gate


def draw(label: str, elem_id: str) -> SimpleNamespace:
    """Both buttons; the second is not seen before the first is pressed."""
    return SimpleNamespace(
        first=gr.Button(label, size="sm", elem_id=elem_id),
        sure=gr.Button(visible=False, variant="stop", size="sm", elem_id=f"{elem_id}-sure"),
        name=gr.State(""),
    )


def wire(parts: SimpleNamespace, chosen: Any, delete: Callable[[str], list[Any]], drawn: list[Any], gate: Gate) -> None:
    """Have ``delete``, which returns values for ``drawn``, called with the name that was ``chosen`` at the first
    press."""

    def ask_first(name: str | None) -> list[Any]:
        if not name:
            raise RequestError(f"{parts.first.value}: none is chosen; choose one from the list")
        return [gr.Button(f"Delete {name} for good", visible=True), name]

    def delete_named(name: str) -> list[Any]:
        if not name:
            raise RequestError(f"{parts.first.value}: the server forgot which; press it again")
        return [gr.Button(visible=False), *delete(name)]

    gate.on(parts.first.click, ask_first, chosen, [parts.sure, parts.name], needs="operator")
    gate.on(parts.sure.click, delete_named, parts.name, [parts.sure, *drawn], needs="operator")
