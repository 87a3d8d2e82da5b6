"""What a page sends: values that no page of the app's own would send are refused in words, without a traceback."""

from __future__ import annotations

import logging
import math
from typing import Any

import gradio as gr

from ..system import logs
from .told import refusal


class Page(gr.Blocks):
    """Gradio's components fail at a value of another kind than theirs, and take for a number what is none."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """The values that a handler is called with."""
        try:
            if any(isinstance(value, float) and not math.isfinite(value) for value in inputs):
                raise ValueError("a number is not finite")
            taken: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return taken
        except (gr.Error, ValueError) as exc:
            logs.event("request.refused", logging.WARNING, handler=block_fn.name, error=type(exc).__name__)
            known = exc.message if isinstance(exc, gr.Error) else "a value is of a kind that its field does not take"
            raise refusal(f"request: {known}; reload the page and choose again") from exc
