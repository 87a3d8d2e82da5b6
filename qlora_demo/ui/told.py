"""Errors for people are shown as they are."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..errors import DemoError, Forbidden
from ..system import logs
from ..visitors.visits import VISITS, each, new_request
from .talk import as_html

_LONGEST = 2000
"""Characters of a message: what was sent may stand in it."""


def told(handler: Callable[..., Any], *, visit: bool = True, draws: bool = True) -> Callable[..., Any]:
    """A handler whose `DemoError`s appear as a message and leave the page as it was.

    Raising `gr.Error` instead would stamp "Error" over everything the handler might have drawn; that is right only for
    who may not use the handler at all.  What the handler logs bears the request's name; ``visit``: a person asked for
    it, not a page by itself; ``draws``: it has outputs, which are left alone then.
    """
    name = getattr(handler, "__qualname__", "handler")
    going = VISITS.one if visit else contextlib.nullcontext
    untouched = gr.skip() if draws else None
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            request = new_request()
            with going():
                try:
                    yield from each(handler(*args, **kwargs), request)
                except DemoError as exc:
                    with logs.of(request=request):
                        _show(name, exc)
                    yield untouched

        return generator

    @functools.wraps(handler)
    def function(*args: Any, **kwargs: Any) -> Any:
        with going(), logs.of(request=new_request()):
            try:
                return handler(*args, **kwargs)
            except DemoError as exc:
                _show(name, exc)
                return untouched

    return function


def refusal(text: str) -> gr.Error:
    """What is raised for a request that no page of the app's own makes."""
    return gr.Error(_words(text), duration=20, print_exception=False)


def warn(text: str, title: str) -> None:
    """A message on the page, whose words are shown as they are: Gradio takes them for HTML."""
    gr.Warning(_words(text), duration=20, title=title)


def _words(text: str) -> str:
    """As it can be sent and shown: half a character, which JSON can write and nothing can send, as a question mark."""
    return as_html(text[:_LONGEST].encode(errors="replace").decode())


def _show(name: str, exc: DemoError) -> None:
    logs.event("request.refused", logging.WARNING, handler=name, error=type(exc).__name__)
    if isinstance(exc, Forbidden):
        raise refusal(str(exc)) from exc
    warn(str(exc), "Not done")
