"""A dropdown of what is on the disk: filled when the page is drawn, and checked by whoever looks the choice up."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Sequence
from typing import Any

import gradio as gr


def _as_it_comes(part: gr.Dropdown, payload: Any) -> Any:
    """A text or nothing; where several may be chosen, a list of texts."""
    several = bool(part.multiselect)
    chosen = [] if several and payload is None else payload
    texts = chosen if several else [] if chosen is None else [chosen]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        wanted = "list of texts" if several else "text"
        raise gr.Error(f"{part.label}: {payload!r} is no {wanted}")  # `sent.Page` tells it
    return chosen


# By the metaclass's own base: Gradio's writes a .pyi file beside whoever makes a kind of component.
_Listed: Any = ABCMeta.__new__(
    type(gr.Dropdown), "Dropdown", (gr.Dropdown,), {"preprocess": _as_it_comes, "__module__": __name__}
)


def listed(**options: Any) -> gr.Dropdown:
    """One that is empty in the page as it is built, and takes a choice as it comes.

    What Gradio last knew to be listed may be less than what the page shows: the server has forgotten the page, for it
    keeps so many, or a list that was on its way came last.
    """
    made: gr.Dropdown = _Listed([], **options)
    return made


def renewed(choices: Sequence[tuple[str, str]], value: Any, chosen: Any) -> dict[str, Any]:
    """The update to what it lists now, and ``value`` chosen of it.  Where the page had that ``chosen`` its choice is
    left alone: another may have been made while this was on its way."""
    same = value is not None and value == chosen
    return gr.update(choices=choices) if same else gr.update(choices=choices, value=value)
