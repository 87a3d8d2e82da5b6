"""How listeners are wired: nothing flickers, no endpoint is offered, errors for people are shown as they are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..errors import DemoError

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""For every listener; an endpoint can still be reached by hand, so what it may do is decided in the handler."""


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose `DemoError`s appear as a message and leave the page as it was.

    Raising `gr.Error` instead would stamp "Error" over everything the handler might have drawn.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **kwargs)
            except DemoError as exc:
                yield _shown(exc)

        return generator

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except DemoError as exc:
            return _shown(exc)

    return function


def _shown(exc: DemoError) -> Any:
    gr.Warning(str(exc), duration=20, title="Not done")
    return gr.skip()
