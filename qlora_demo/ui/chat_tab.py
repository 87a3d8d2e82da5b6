"""The Chat tab: the same prompt to every column, streaming by fair turns.

The conversation lives in a `gr.State` on the server; what the browser shows is drawn from it and never read back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..catalog import VARIANTS
from ..config import GenerationSettings
from ..errors import ConfigError, RunError
from ..records import Answer, AnswerRequest, Message, Progress
from ..runs import RunStore
from ..services import Services
from . import controls, render
from .told import told

_EXAMPLES = 6


@dataclass
class Talk:
    """One visitor's conversations, one per column, all with one run and one system prompt."""

    run: str = ""
    system: str = ""
    prompt: str = ""
    turns: dict[str, list[Message]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


class Stops:
    """The stop flag of each visitor's answer in progress."""

    def __init__(self) -> None:
        self._flags: dict[str, threading.Event] = {}

    def new(self, visitor: str) -> threading.Event:
        flag = self._flags[visitor] = threading.Event()
        return flag

    def done(self, visitor: str) -> None:
        self._flags.pop(visitor, None)

    def set(self, visitor: str) -> None:
        if (flag := self._flags.get(visitor)) is not None:
            flag.set()


def build(services: Services) -> gr.Dropdown:
    """Draw the tab and wire it; the run dropdown, for the page to refresh when the tab opens."""
    talk = gr.State(Talk())
    with gr.Row():
        run = gr.Dropdown([], label="Finished run", elem_id="chat-run", scale=3, interactive=True)
        names = gr.CheckboxGroup(
            [(title, name) for name, title in VARIANTS.items()],
            value=list(VARIANTS),
            label="Columns",
            elem_id="columns",
            scale=2,
        )
        free = gr.Button("Free memory", elem_id="free", scale=1, min_width=120)
    with gr.Accordion("System prompt and sampling", open=False):
        system = gr.Textbox(label="System prompt", info="The run's own is filled in", lines=2, elem_id="system")
        with gr.Row():
            sampling = controls.draw(GenerationSettings, "Sampling")
    heads, chats, feet, columns = _draw_columns()
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(
            placeholder="Ask all columns the same thing", show_label=False, scale=6, elem_id="prompt", autofocus=False
        )
        send = gr.Button("Send", variant="primary", elem_id="send", scale=1, min_width=90)
        stop = gr.Button("Stop", elem_id="stop-answer", scale=1, min_width=90)
        retry = gr.Button("Retry", elem_id="retry", scale=1, min_width=90)
        clear = gr.Button("Clear", elem_id="clear", scale=1, min_width=90)
    examples = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[],
        label="Prompts this run never trained on",
        elem_id="examples",
    )
    stops = Stops()
    shown = [*heads.values(), *chats.values(), *feet.values()]

    def draw(talk: Talk) -> list[Any]:
        resident = {one.variant: one for one in services.engine.resident()}
        return [
            *(render.column_head(name, title, resident.get(name)) for name, title in VARIANTS.items()),
            *(_messages(talk, name) for name in VARIANTS),
            *(render.column_foot(talk.answers.get(name)) for name in VARIANTS),
        ]

    def ask(
        text: str, run_id: str | None, chosen: list[str], system: str, talk: Talk, request: gr.Request, *values: Any
    ) -> Iterator[list[Any]]:
        settings = controls.read(GenerationSettings, list(sampling), values)
        talk = _with_prompt(talk, text, _named(run_id), _in_order(chosen), system)
        yield ["", talk, *draw(talk)]
        yield from ([gr.skip(), *rest] for rest in answer(talk, settings, request))

    def again(
        run_id: str | None, chosen: list[str], system: str, talk: Talk, request: gr.Request, *values: Any
    ) -> Iterator[list[Any]]:
        settings = controls.read(GenerationSettings, list(sampling), values)
        last = _take_back(talk)
        talk = _with_prompt(talk, last, _named(run_id), _in_order(chosen), system)
        yield from answer(talk, settings, request)

    def answer(talk: Talk, settings: GenerationSettings, request: gr.Request) -> Iterator[list[Any]]:
        visitor = str(request.session_hash)
        flag = stops.new(visitor)
        conversations = {name: _conversation(talk, name) for name in talk.turns}
        try:
            _load(services, talk.run, list(conversations))
            asked = AnswerRequest(talk.run, conversations, settings)
            for answers in services.engine().answer(asked, flag):
                talk.answers = {one.variant: one for one in answers}
                yield [gr.skip(), *draw(talk)]
        finally:
            flag.set()
            stops.done(visitor)
            _settle(talk)
        yield [talk, *draw(talk)]

    def halt(request: gr.Request) -> None:
        stops.set(str(request.session_hash))

    def forget() -> list[Any]:
        fresh = Talk()
        return [fresh, *draw(fresh)]

    def release(talk: Talk) -> list[Any]:
        services.engine.release()
        return draw(talk)

    def choose(run_id: str | None) -> list[Any]:
        fresh = Talk()
        prompts, own_system = _examples(services.runs, run_id)
        return [fresh, own_system, gr.Dataset(samples=[[text] for text in prompts]), *draw(fresh)]

    def show(chosen: list[str]) -> list[Any]:
        return [gr.Column(visible=name in chosen) for name in VARIANTS]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    busy: dict[str, Any] = {**quiet, "concurrency_id": "answers", "concurrency_limit": 8}
    settings_in = [*sampling.values()]
    for trigger in (send.click, prompt.submit):
        trigger(told(ask), [prompt, run, names, system, talk, *settings_in], [prompt, talk, *shown], **busy)
    retry.click(told(again), [run, names, system, talk, *settings_in], [talk, *shown], **busy)
    stop.click(halt, None, None, **quiet)
    clear.click(forget, None, [talk, *shown], **quiet)
    free.click(told(release), talk, shown, **quiet)
    names.change(show, names, list(columns.values()), **quiet)
    run.change(told(choose), run, [talk, system, examples, *shown], **quiet)
    examples.click(lambda sample: sample[0], examples, prompt, **quiet)
    return run


def runs_with_adapter(runs: RunStore, chosen: str | None) -> gr.Dropdown:
    """The runs that can be talked to; keeps the one that is chosen, else takes the newest."""
    ready = [run for run in runs.all() if run.has_adapter and run.state.ended]
    ids = [run.id for run in ready]
    value = chosen if chosen in ids else (ids[0] if ids else None)
    return gr.Dropdown([(render.run_label(run), run.id) for run in ready], value=value)


def _draw_columns() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    heads: dict[str, Any] = {}
    chats: dict[str, Any] = {}
    feet: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    with gr.Row():
        for name, title in VARIANTS.items():
            with gr.Column(min_width=260, elem_id=f"column-{name}") as columns[name]:
                heads[name] = gr.HTML(render.column_head(name, title, None), elem_id=f"head-{name}")
                chats[name] = gr.Chatbot(
                    height=360,
                    show_label=False,
                    elem_id=f"chat-{name}",
                    render_markdown=False,
                    feedback_options=None,
                    buttons=["copy"],
                    placeholder="Choose a finished run and ask something below.",
                )
                feet[name] = gr.HTML(render.column_foot(None), elem_id=f"foot-{name}")
    return heads, chats, feet, columns


def _load(services: Services, run: str, names: list[str]) -> None:
    bar = gr.Progress()

    def report(progress: Progress) -> None:
        bar(progress.fraction or 0.0, desc=progress.text)

    services.engine().load(run, names, report)


def _with_prompt(talk: Talk, text: str, run: str, names: list[str], system: str) -> Talk:
    if not text.strip():
        raise ConfigError("prompt", "it is empty; type something or pick an example")
    if not names:
        raise ConfigError("columns", "none is chosen; tick at least one")
    same = talk.run == run and talk.system == system
    turns = {name: list(talk.turns.get(name, [])) if same else [] for name in names}
    for column in turns.values():
        column.append({"role": "user", "content": text})
    return Talk(run, system, text, turns)


def _conversation(talk: Talk, name: str) -> tuple[Message, ...]:
    opening: list[Message] = [{"role": "system", "content": talk.system}] if talk.system.strip() else []
    return (*opening, *talk.turns[name])


def _settle(talk: Talk) -> None:
    """Put the answers into the conversations, so the next turn sees them; where there is none, take the prompt back."""
    for name, turns in talk.turns.items():
        answer = talk.answers.get(name)
        if answer is None or answer.error:
            turns.pop()
        else:
            turns.append({"role": "assistant", "content": answer.text})


def _take_back(talk: Talk) -> str:
    """Remove the last prompt and its answers from the columns that have them; the prompt."""
    if not talk.prompt:
        raise ConfigError("prompt", "there is nothing to retry; send a prompt first")
    for turns in talk.turns.values():
        if len(turns) > 1 and turns[-2] == {"role": "user", "content": talk.prompt}:
            del turns[-2:]
    return talk.prompt


def _messages(talk: Talk, name: str) -> list[Message]:
    turns = list(talk.turns.get(name, []))
    growing = talk.answers.get(name)
    if growing is not None and turns and turns[-1]["role"] == "user":
        turns.append({"role": "assistant", "content": growing.text or "…"})
    return turns


def _in_order(chosen: list[str]) -> list[str]:
    return [name for name in VARIANTS if name in chosen]


def _examples(runs: RunStore, run_id: str | None) -> tuple[list[str], str]:
    if not run_id:
        return [], ""
    rows = [row for split in runs.heldout(run_id).values() for row in split[: _EXAMPLES // 2]]
    prompts = [next((m["content"] for m in reversed(row) if m["role"] == "user"), "") for row in rows]
    systems = [m["content"] for row in rows for m in row if m["role"] == "system"]
    return [text for text in prompts if text], systems[0] if systems else ""


def _named(run_id: str | None) -> str:
    if not run_id:
        raise RunError("run: none is finished yet; train one on the Train tab, it takes minutes")
    return run_id
