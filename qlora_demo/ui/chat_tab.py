"""The Chat tab: the same prompt to every column, streaming by fair turns.

The conversation lives in a `gr.State` on the server; what the browser shows is drawn from it and never read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..catalog import VARIANTS
from ..config import GenerationSettings
from ..errors import RunError
from ..records import AnswerRequest
from ..runs import RunStore
from ..services import Services
from . import controls, render
from .talk import Stops, Talk, conversation, messages, settle, take_back, with_prompt
from .told import told

_EXAMPLES = 6


def build(services: Services) -> gr.Dropdown:
    """Draw the tab and wire it; the run dropdown, for the page to refresh when the tab opens."""
    parts = _draw()
    chat = Chat(services, list(parts.sampling))
    shown = [*parts.heads.values(), *parts.chats.values(), *parts.feet.values()]
    choices = [parts.run, parts.names, parts.system, parts.talk, *parts.sampling.values()]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    busy: dict[str, Any] = {**quiet, "concurrency_id": "answers", "concurrency_limit": 8}
    asking = [
        trigger(told(chat.ask), [parts.prompt, *choices], [parts.prompt, parts.talk, *shown], **busy)
        for trigger in (parts.send.click, parts.prompt.submit)
    ]
    asking.append(parts.retry.click(told(chat.retry), choices, [parts.talk, *shown], **busy))
    parts.stop.click(chat.halt, None, None, **quiet)
    parts.clear.click(chat.forget, None, [parts.talk, *shown], cancels=asking, **quiet)
    parts.free.click(told(chat.release), parts.talk, shown, **quiet)
    parts.save.click(told(chat.save_merged), parts.run, parts.saved, api_visibility="private")
    parts.names.change(chat.show_columns, parts.names, list(parts.columns.values()), **quiet)
    choose_out = [parts.talk, parts.system, parts.examples, *shown]
    parts.run.change(told(chat.choose_run), parts.run, choose_out, cancels=asking, **quiet)
    parts.examples.click(lambda sample: sample[0], parts.examples, parts.prompt, **quiet)
    run: gr.Dropdown = parts.run
    return run


def runs_with_adapter(runs: RunStore, chosen: str | None) -> gr.Dropdown:
    """The runs that can be talked to; keeps the one that is chosen, else takes the newest."""
    ready = [run for run in runs.all() if run.has_adapter and run.state.ended]
    ids = [run.id for run in ready]
    value = chosen if chosen in ids else (ids[0] if ids else None)
    return gr.Dropdown([(render.run_label(run), run.id) for run in ready], value=value)


class Chat:
    """What the tab's buttons do."""

    def __init__(self, services: Services, sampling: list[str]) -> None:
        self.services = services
        self.sampling = sampling
        self.stops = Stops()

    def ask(self, text: str, request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        """One more prompt to every chosen column."""
        run, names, system, talk, settings = self._read(choices)
        talk = with_prompt(talk, text, run, names, system)
        for shown in self._answer(talk, settings, request):
            yield ["", *shown]

    def retry(self, request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        """The last prompt once more, to the columns that are chosen now."""
        run, names, system, talk, settings = self._read(choices)
        talk = with_prompt(talk, take_back(talk), run, names, system)
        yield from self._answer(talk, settings, request)

    def halt(self, request: gr.Request) -> None:
        """Stop this visitor's answer after the pass it is in."""
        self.stops.set(_visitor(request))

    def forget(self, request: gr.Request) -> list[Any]:
        """Begin a new conversation; an answer that still grows is stopped, and the page no longer listens to it."""
        self.stops.set(_visitor(request))
        fresh = Talk()
        return [fresh, *self.draw(fresh)]

    def release(self, talk: Talk) -> list[Any]:
        """Free the models and the device."""
        self.services.engine.release()
        return self.draw(talk)

    def save_merged(self, run: str | None) -> str:
        """Write the merged model of the chosen run into its folder."""
        return render.merge_saved(self.services.engine().merge(_named(run), None, None, lambda _: None))

    def choose_run(self, run: str | None) -> list[Any]:
        """Another run is another conversation, with its own system prompt and examples."""
        fresh = Talk()
        prompts, system = _examples(self.services.runs, run)
        return [fresh, system, gr.Dataset(samples=[[text] for text in prompts]), *self.draw(fresh)]

    def show_columns(self, names: list[str]) -> list[Any]:
        """Show the chosen columns only."""
        return [gr.Column(visible=name in names) for name in VARIANTS]

    def draw(self, talk: Talk, waiting: str = "loads with the first prompt") -> list[Any]:
        """Heads, conversations and feet of all columns; `waiting` stands where no model is yet."""
        resident = {one.variant: one for one in self.services.engine.resident()}
        return [
            *(render.column_head(title, resident.get(name), waiting) for name, title in VARIANTS.items()),
            *(messages(talk, name) for name in VARIANTS),
            *(render.column_foot(talk.answers.get(name)) for name in VARIANTS),
        ]

    def _read(self, choices: Any) -> tuple[str, list[str], str, Talk, GenerationSettings]:
        run, names, system, talk, *values = choices
        settings = controls.read(GenerationSettings, self.sampling, values)
        return _named(run), [name for name in VARIANTS if name in names], system, talk, settings

    def _answer(self, talk: Talk, settings: GenerationSettings, request: gr.Request) -> Iterator[list[Any]]:
        conversations = {name: conversation(talk, name) for name in talk.asked}
        flag = self.stops.new(_visitor(request))
        try:
            yield [talk, *self.draw(talk)]
            for progress in self.services.engine().load(talk.run, list(conversations), flag):
                yield [gr.skip(), *self.draw(talk, progress.text)]
            for answers in self.services.engine().answer(AnswerRequest(talk.run, conversations, settings), flag):
                talk.answers |= {one.variant: one for one in answers}
                yield [gr.skip(), *self.draw(talk)]
        finally:
            flag.set()
            self.stops.done(_visitor(request))
            settle(talk)
        yield [talk, *self.draw(talk)]


def _draw() -> SimpleNamespace:
    parts = SimpleNamespace(talk=gr.State(Talk()))
    with gr.Row():
        parts.run = gr.Dropdown([], label="Finished run", elem_id="chat-run", scale=3, interactive=True)
        columns = [(title, name) for name, title in VARIANTS.items()]
        parts.names = gr.CheckboxGroup(columns, value=list(VARIANTS), label="Columns", elem_id="columns", scale=2)
        with gr.Column(scale=1, min_width=150):
            parts.save = gr.Button("Save merged model", elem_id="save-merged", size="sm")
            parts.free = gr.Button("Free memory", elem_id="free", size="sm")
    parts.saved = gr.HTML(elem_id="saved")
    with gr.Accordion("System prompt and sampling", open=False):
        parts.system = gr.Textbox(label="System prompt", info="The run's own is filled in", lines=2, elem_id="system")
        with gr.Row():
            parts.sampling = controls.draw(GenerationSettings, "Sampling")
    _draw_columns(parts)
    with gr.Row(equal_height=True):
        hint = "Ask all columns the same thing"
        parts.prompt = gr.Textbox(placeholder=hint, label="Prompt", show_label=False, scale=6, elem_id="prompt")
        parts.send = gr.Button("Send", variant="primary", elem_id="send", scale=1, min_width=90)
        parts.stop = gr.Button("Stop", elem_id="stop-answer", scale=1, min_width=90)
        parts.retry = gr.Button("Retry", elem_id="retry", scale=1, min_width=90)
        parts.clear = gr.Button("Clear", elem_id="clear", scale=1, min_width=90)
    label = "Prompts this run never trained on"
    parts.examples = gr.Dataset(components=[gr.Textbox(visible=False)], samples=[], label=label, elem_id="examples")
    return parts


def _draw_columns(parts: SimpleNamespace) -> None:
    parts.heads, parts.chats, parts.feet, parts.columns = {}, {}, {}, {}
    with gr.Row():
        for name, title in VARIANTS.items():
            with gr.Column(min_width=260, elem_id=f"column-{name}") as parts.columns[name]:
                parts.heads[name] = gr.HTML(render.column_head(title, None, ""), elem_id=f"head-{name}")
                parts.chats[name] = gr.Chatbot(
                    height=360,
                    show_label=False,
                    elem_id=f"chat-{name}",
                    render_markdown=False,
                    feedback_options=None,
                    buttons=["copy"],
                    placeholder="Choose a finished run and ask something below.",
                )
                parts.feet[name] = gr.HTML(render.column_foot(None), elem_id=f"foot-{name}")


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


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
