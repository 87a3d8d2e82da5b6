"""The guided first visit: one button that does the next thing, from the data to a downloaded report.

A stage's button opens its tab and brings the control that does it into view: it is the same one that everybody uses,
pressed for the newcomer where nothing is to be chosen, waiting to be pressed where something is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..services import Services
from . import render_guide as show
from . import stages
from .gate import Gate, visitor_of
from .run_choices import examples
from .stages import Stage, Standing
from .talk import Talk

_POLL_SECONDS = 3
_PATIENCE_MS = 10_000
_LEAD = """() => {
  const {control, filled, press} = %s, started = Date.now();
  const ready = () => {
    const found = document.querySelector(control), box = filled && document.querySelector(filled);
    return found && found.offsetParent && !found.disabled && (!filled || (box && box.value)) ? found : null;
  };
  const go = () => {
    const found = ready();
    if (!found) { if (Date.now() - started < %d) setTimeout(go, 100); return; }
    found.scrollIntoView({block: "center"});
    found.focus();
    if (press) found.click();
  };
  setTimeout(go, 100);
}"""


@dataclass(frozen=True)
class Control:
    """What does a stage: its tab, its selector, the box that must hold something first, whether to press it."""

    tab: str
    control: str
    filled: str = ""
    press: bool = True

    def script(self) -> str:
        """Waits until the control is there, then leads to it."""
        told = json.dumps({"control": self.control, "filled": self.filled, "press": self.press})
        return _LEAD % (told, _PATIENCE_MS)


_SEND = Control("chat", "#send", "#prompt textarea", press=False)
_CONTROLS = {
    stages.DATA: Control("train", "#check-data"),
    stages.BEFORE: _SEND,
    stages.TRAIN: Control("train", "#start"),
    stages.AFTER: _SEND,
    stages.MEASURE: Control("evaluate", "#evaluate", "#judge-run input"),
    stages.REPORT: Control("evaluate", "#report", "#judge-run input"),
}


@dataclass(frozen=True)
class Seen:
    """What this page went through that leaves nothing on the disk, the question it last put, and what it shows."""

    stages: frozenset[str] = frozenset()
    question: str = ""
    shown: Standing | None = None


def draw() -> SimpleNamespace:
    """The line and the buttons, of which one is visible."""
    with gr.Row(visible=False, elem_id="guide") as box:
        line = gr.HTML(elem_id="guide-line")
        buttons = [
            gr.Button(stage.does, variant="primary", visible=False, elem_id=f"guide-{stage.name.lower()}")
            for stage in stages.STAGES
        ]
    return SimpleNamespace(box=box, line=line, buttons=buttons, seen=gr.State(Seen()))


def wire(
    services: Services, parts: SimpleNamespace, tabs: gr.Tabs, chat: SimpleNamespace, gate: Gate
) -> tuple[Callable[..., list[Any]], Any, list[Any]]:
    """Have the guide follow the home, and lead; what the page is to call when it is loaded."""

    def operates(request: gr.Request) -> bool:
        return visitor_of(services.access, request).role == "operator"

    def look(seen: Seen, request: gr.Request) -> list[Any]:
        """Where nothing changed, what is seen is left alone: a button may have added to it meanwhile.  An operator's
        page goes on looking when its session has ended."""
        *shown, after = _drawn(services, seen, operates(request))
        return [*shown, gr.skip() if after == seen else after]

    def asked(talk: Talk, seen: Seen, request: gr.Request) -> list[Any]:
        """An answer came: of the base model alone, or of a tuned one."""
        stage = stages.AFTER if talk.run in services.runs.names() else stages.BEFORE
        return _drawn(services, _with(seen, stage) if talk.answers else seen, operates(request))

    drawn = [parts.box, parts.line, *parts.buttons, parts.seen]
    timer = gr.Timer(_POLL_SECONDS)
    gate.guard(timer)
    gate.on(timer.tick, look, parts.seen, drawn, needs="visitor", concurrency_limit=None)
    for event in chat.asking:
        gate.on(event.then, asked, [chat.talk, parts.seen], drawn, needs="visitor")
    for stage, button in zip(stages.STAGES, parts.buttons, strict=True):
        led = gate.on(
            button.click,
            _leading(services, stage),
            [chat.run, chat.prompt, parts.seen],
            [tabs, chat.prompt, *drawn],
            needs="operator",
        )
        gate.on(led.then, lambda: None, needs="visitor", js=_CONTROLS[stage].script())
    return look, parts.seen, drawn


def _leading(services: Services, stage: Stage) -> Callable[[str | None, str | None, Seen], list[Any]]:
    """Open a stage's tab; where a question is to be asked, one is put into the chat's box, unless somebody typed."""
    control = _CONTROLS[stage]

    def lead(run: str | None, typed: str | None, seen: Seen) -> list[Any]:
        after = _with(seen, stage) if stage is stages.DATA else seen
        asks = control is _SEND and (typed or "").strip() in ("", seen.question)
        question = _question(services, run) if asks else ""
        after = replace(after, question=question or seen.question)
        return [gr.Tabs(selected=control.tab), question or gr.skip(), *_drawn(services, after, operator=True)]

    return lead


def _question(services: Services, chosen: str | None) -> str:
    """One that the newest run never saw, else one for what is chosen; empty where there is none."""
    tuned = stages.newest_tuned(services.runs.all())
    prompts, _ = examples(services.runs, tuned.id if tuned else chosen)
    return prompts[0] if prompts else ""


def _drawn(services: Services, seen: Seen, operator: bool) -> list[Any]:
    """The box, its line, its buttons, and what is seen; only where something changed."""
    where = stages.standing(services.runs.all(), services.jobs.last, seen.stages) if operator else Standing(None)
    if where == seen.shown:
        return [*[gr.skip()] * (2 + len(stages.STAGES)), seen]
    buttons = [gr.Button(visible=stage is where.next and not where.waits) for stage in stages.STAGES]
    return [gr.Row(visible=where.next is not None), show.guide(where), *buttons, replace(seen, shown=where)]


def _with(seen: Seen, stage: Stage) -> Seen:
    return replace(seen, stages=seen.stages | {stage.name})
