"""A dropdown of what is on the disk: filled when the page is drawn, and checked by whoever looks the choice up."""

from __future__ import annotations

from typing import Any

import gradio as gr


def listed(**options: Any) -> gr.Dropdown:
    """One that is empty in the page as it is built.

    A page that the server has forgotten, for it keeps so many, meets that one: it takes the choice as it comes.
    """
    made = gr.Dropdown([], **options)
    vars(made)["preprocess"] = lambda payload: payload
    return made
