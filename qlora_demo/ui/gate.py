"""How listeners are wired: each says which role it needs, nothing flickers, no endpoint is offered.

    gate.on(parts.start.click, begin, inputs, outputs, needs="operator")

Nothing else wires a listener (a test walks the built page).  An endpoint can be reached by hand, whatever the page
shows, so the role is checked when the handler is called; ``door.py`` asks for it before Gradio reads the request.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ..visitors.access import Access, Role, Visitor
from .discreet import Discreet
from .told import told

Trigger = Callable[..., Any]
_PRIVATE = {"api_visibility": "private"}


class Gate:
    """Wires the listeners of one page, and keeps what only operators may use out of visitors' reach."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._discreet = Discreet(access.settings.home)
        self._guarded: dict[int, Any] = {}
        self._shown: list[tuple[Any, Role]] = []

    def on(
        self,
        trigger: Trigger | Sequence[Trigger],
        handler: Callable[..., Any],
        inputs: Any = None,
        outputs: Any = None,
        *,
        needs: Role,
        counted: bool = False,
        **options: Any,
    ) -> Any:
        """Call `handler` on an event, or on several, for those who have the role; ``counted``: it costs something, so a
        visitor may do it so many times a minute.  `DemoError`s are told, visitors are not told where the home lies, and
        `options` are Gradio's; no progress is shown unless `show_progress` is among them."""
        triggers = list(trigger) if isinstance(trigger, Sequence) else [trigger]
        sources = [getattr(one, "__self__", None) for one in triggers]
        if needs == "operator":
            self.guard(*(source for source in sources if isinstance(source, gr.components.Component)))
        visit = not any(isinstance(source, gr.Blocks | gr.Timer) for source in sources)
        parts = list(outputs) if isinstance(outputs, Sequence) else [outputs] if outputs else []
        checked = told(self._checked(handler, needs, counted, parts), visit=visit, draws=bool(parts))
        options = _PRIVATE | ({} if "show_progress" in options else _quiet(parts)) | options
        if len(triggers) == 1:
            return triggers[0](checked, inputs, outputs, **options)
        return gr.on(triggers, checked, inputs, outputs, **options)

    def script(self, trigger: Trigger, js: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Have the page itself do something on an event: nothing is sent, so nobody's role matters."""
        trigger(None, list(inputs), list(outputs), js=js, trigger_mode="multiple", **_PRIVATE | _quiet(outputs))

    def guard(self, *components: Any) -> None:
        """Disable these for visitors; timers stand still."""
        if not self.access.open:
            self._guarded |= {component._id: component for component in components}

    def only(self, shown: Any, role: Role) -> None:
        """Show this to one role only; visitors' things are there when the page arrives."""
        if not self.access.open:
            self._shown.append((shown, role))
            shown.visible = role == "visitor"

    def close(self, page: gr.Blocks) -> None:
        """Wire what opens the page's guarded parts to operators; call it last, inside the page.

        A visitor's page is left as it came: Gradio keeps a copy of every component that is changed, for each session.
        """
        guarded = list(self._guarded.values())
        for component in guarded:
            _disable(component)

        def open_to(request: gr.Request) -> list[Any]:
            if visitor_of(self.access, request).role == "visitor":
                return [gr.skip()] * len(outputs)
            drawn = [_enabled(component) for component in guarded]
            return [*drawn, *(gr.update(visible=meant == "operator") for _, meant in self._shown)]

        if outputs := [*guarded, *(component for component, _ in self._shown)]:
            self.on(page.load, open_to, None, outputs, needs="visitor")

    def _checked(
        self, handler: Callable[..., Any], needs: Role, counted: bool, outputs: Sequence[Any]
    ) -> Callable[..., Any]:
        """The handler behind the question who asks; Gradio reads its signature to know what to hand it."""

        def check(request: gr.Request) -> Role:
            visitor = visitor_of(self.access, request)
            self.access.require(visitor, needs)
            if counted:
                self.access.spend(visitor)
            return visitor.role

        def generator(asked_by: gr.Request, *args: Any) -> Iterator[Any]:
            if check(asked_by) == "operator":
                yield from handler(*args)
                return
            with self._discreet.errors():
                for drawn in handler(*args):
                    yield self._discreet.drawn(drawn, outputs)

        def function(asked_by: gr.Request, *args: Any) -> Any:
            if check(asked_by) == "operator":
                return handler(*args)
            with self._discreet.errors():
                return self._discreet.drawn(handler(*args), outputs)

        wrapped: Any = generator if inspect.isgeneratorfunction(handler) else function
        signature = inspect.signature(handler)
        asker = inspect.Parameter("asked_by", inspect.Parameter.POSITIONAL_ONLY)
        wrapped.__signature__ = signature.replace(parameters=[asker, *signature.parameters.values()])
        wrapped.__annotations__ = typing.get_type_hints(handler) | {"asked_by": gr.Request}
        wrapped.__name__ = getattr(handler, "__name__", "handler")
        wrapped.__qualname__ = getattr(handler, "__qualname__", "handler")
        wrapped.needs, wrapped.counted = needs, counted
        return typing.cast(Callable[..., Any], wrapped)


def visitor_of(access: Access, request: gr.Request) -> Visitor:
    """Who sent a request, as the door found out; somebody unknown is a visitor."""
    found = getattr(request.request.state, "visitor", None) if request.request else None
    visitor = found if isinstance(found, Visitor) else access.identify("")
    return replace(visitor, page=str(request.session_hash or ""))


def _quiet(outputs: Sequence[Any]) -> dict[str, Any]:
    """No progress is shown.  At each message of any listener Gradio's page updates every component that some listener's
    progress is shown on, so only chats are named: they tell by it that an answer grows and offer no editing."""
    return {"show_progress": "hidden", "show_progress_on": [part for part in outputs if isinstance(part, gr.Chatbot)]}


def _disable(component: Any) -> None:
    if isinstance(component, gr.Timer):
        component.active = False
    else:
        component.interactive = False


def _enabled(component: Any) -> Any:
    return gr.Timer(active=True) if isinstance(component, gr.Timer) else gr.update(interactive=True)
