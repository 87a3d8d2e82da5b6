"""How listeners are wired: nothing flickers, no endpoint is offered, errors for people are shown as they are."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from .. import logs
from ..errors import DemoError
from ..visits import VISITS, each, new_request

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""For every listener; an endpoint can still be reached by hand, so what it may do is decided in the handler."""


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose `DemoError`s appear as a message and leave the page as it was.

    Raising `gr.Error` instead would stamp "Error" over everything the handler might have drawn.  What the handler logs
    bears the request's name.
    """
    name = getattr(handler, "__qualname__", "handler")
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            request = new_request()
            with VISITS.one():
                try:
                    yield from each(handler(*args, **kwargs), request)
                except DemoError as exc:
                    with logs.of(request=request):
                        yield _shown(name, exc)

        return generator

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> Any:
        with VISITS.one(), logs.of(request=new_request()):
            try:
                return handler(*args, **kwargs)
            except DemoError as exc:
                return _shown(name, exc)

    return function


def _shown(name: str, exc: DemoError) -> Any:
    logs.event("request.refused", logging.WARNING, handler=name, error=type(exc).__name__)
    gr.Warning(str(exc), duration=20, title="Not done")
    return gr.skip()
