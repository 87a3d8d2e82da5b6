"""A dropdown of what is on the disk: filled when the page is drawn, and checked by whoever looks the choice up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr


def listed(**options: Any) -> gr.Dropdown:
    """One that is empty in the page as it is built.

    A page that the server has forgotten, for it keeps so many, meets that one: it takes the choice as it comes.
    """
    made = gr.Dropdown([], **options)
    vars(made)["preprocess"] = lambda payload: payload
    return made


def renewed(choices: Sequence[tuple[str, str]], value: Any, chosen: Any) -> dict[str, Any]:
    """The update to what it lists now, and ``value`` chosen of it.  Where the page had that ``chosen`` its choice is
    left alone: another may have been made while this was on its way."""
    return gr.update(choices=choices) if value == chosen else gr.update(choices=choices, value=value)
