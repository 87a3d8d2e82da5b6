"""Errors that a person is meant to read, shown on the page as they are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..errors import DemoError


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
