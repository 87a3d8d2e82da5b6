"""The Chat tab: the same prompt to one to four columns, streaming by fair turns.

The conversation lives in a `gr.State` on the server; what the browser shows is drawn from it and never read back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import gradio as gr

from .. import columns as grammar
from ..catalog import BUNDLED_MODELS, DEFAULT_COLUMNS, is_fetched
from ..config import GenerationSettings
from ..errors import ConfigError
from ..records import Order
from ..results.votes import ALL_BAD, TIE
from ..runs import RunStore
from ..services import Services
from . import controls, render
from . import render_answers as show
from .chat import SLOTS, Chat
from .gate import Gate
from .listed import listed, renewed
from .talk import Talk, from_html

_BUSY: dict[str, Any] = {
    "counted": True,
    "concurrency_id": "answers",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}
"""A click right after Clear must not be dropped: the page still waits for the last answer, `Stops` decides.  Who waits
is `waiting.Waiting`'s to say, not Gradio's."""

_TAKEN = "(typed, taken) => [typed.startsWith(taken) ? typed.slice(taken.length) : typed, '']"
_GIVEN_BACK = "(typed, back) => [back && typed && typed !== back ? back + '\\n' + typed : back || typed, '']"
"""A prompt leaves its box when it is taken in, and comes back where nothing answers.  What is typed meanwhile stays."""

_SEED_IDLE = "The temperature is 0: every column takes its likeliest token, whatever the seed. Raise it to draw."


def build(services: Services, gate: Gate) -> SimpleNamespace:
    """Draw the tab and wire it; its parts: ``run`` is to be refreshed when the tab opens, ``asking`` the events that
    end with an answer in ``talk``."""
    parts = _draw()
    chat = Chat(services, list(parts.sampling))
    choices = [parts.run, parts.names, parts.system, parts.blind, parts.order, parts.talk, *parts.sampling.values()]
    drawn = [parts.talk, parts.queued, *parts.heads, *parts.chats, *parts.feet, *parts.votes, parts.latency]
    drawn += parts.compared
    shown = [parts.run, parts.names, parts.talk]
    placing = (shown, [parts.placement, *parts.columns])
    asking = _wire_answers(parts, chat, choices, drawn, gate)
    freed = gate.on(parts.free.click, chat.release, parts.talk, drawn, needs="operator")
    told = [parts.names, parts.system, parts.examples, *drawn]
    chosen = gate.on(parts.run.change, chat.choose_run, [parts.run, parts.names], told, needs="visitor")
    cleared = gate.on(parts.clear.click, chat.forget, None, drawn, needs="visitor")
    named = gate.on(parts.names.change, chat.choose, shown, drawn, needs="visitor")
    for event in (*asking, freed, chosen, cleared, named):
        gate.on(event.then, chat.place, *placing, needs="visitor")
    gate.on(parts.stop.click, chat.halt, needs="visitor")
    gate.on(parts.keep.click, chat.keep, parts.talk, needs="operator")
    for button, choice in zip(parts.votes, [*map(str, SLOTS), TIE, ALL_BAD], strict=True):
        gate.on(button.click, _voting(chat, choice), parts.talk, drawn, needs="visitor", counted=True)
    left, right, shown = parts.compared
    for picked in (left, right):
        gate.on(picked.input, chat.differences, [parts.talk, left, right], shown, needs="visitor")
    gate.on(parts.examples.click, chat.example, [parts.examples, parts.run], parts.prompt, needs="visitor")
    gate.on(parts.new_seed.click, new_seed, parts.sampling["temperature"], parts.sampling["seed"], needs="visitor")
    gate.on(parts.greedy.click, greedy, None, parts.sampling["temperature"], needs="visitor")
    parts.asking = asking
    return parts


def askable(services: Services, chosen: str | None) -> dict[str, Any]:
    """What can be talked to: the finished runs; while there is none, the bundled models as they are."""
    found = runs_with_adapter(services.runs, chosen)
    if found["choices"]:
        return found
    names = [name for name in BUNDLED_MODELS if is_fetched(services.settings, name)]
    return renewed([(f"{name} · before any training", name) for name in names], next(iter(names), None), chosen)


def runs_with_adapter(runs: RunStore, chosen: str | None) -> dict[str, Any]:
    """The finished runs; keeps the one that is chosen, also where it trains on, else takes the newest."""
    ready = [run for run in runs.all() if run.has_adapter and (run.state.ended or run.id == chosen)]
    ids = [run.id for run in ready]
    value = chosen if chosen in ids else (ids[0] if ids else None)
    return renewed([(render.run_label(run), run.id) for run in ready], value, chosen)


def new_seed(temperature: float | None) -> int:
    """A seed nobody has used yet, most likely."""
    seed = random.randrange(2**31)
    gr.Info(f"Every column draws with seed {seed} from now on." if temperature else _SEED_IDLE)
    return seed


def greedy() -> int:
    """The temperature at which every column takes its likeliest token."""
    gr.Info("Every column takes its likeliest token from now on: the temperature is 0.")
    return 0


def _wire_answers(parts: SimpleNamespace, chat: Chat, choices: list[Any], drawn: list[Any], gate: Gate) -> list[Any]:
    """Everything that makes columns answer; its events."""
    asked = gate.on(
        [parts.send.click, parts.prompt.submit],
        chat.ask,
        [parts.prompt, *choices],
        [parts.taken, parts.back, *drawn],
        needs="visitor",
        **_BUSY,
    )
    for event, script, told in ((parts.taken.change, _TAKEN, parts.taken), (asked.then, _GIVEN_BACK, parts.back)):
        gate.script(event, script, [parts.prompt, told], [parts.prompt, told])
    asking = [asked, gate.on(parts.retry.click, chat.retry, choices, drawn, needs="visitor", **_BUSY)]
    for place in SLOTS:
        again, halt, edit = _for_place(chat, place)
        asking.append(gate.on(parts.again[place].click, again, choices, drawn, needs="visitor", **_BUSY))
        asking.append(gate.on(parts.chats[place].edit, edit, choices, drawn, needs="visitor", **_BUSY))
        gate.on(parts.halts[place].click, halt, parts.talk, needs="visitor")
    return asking


def _for_place(chat: Chat, place: int) -> tuple[Any, Any, Any]:
    def again(request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        yield from chat.again(place, request, *choices)

    def halt(talk: Talk, request: gr.Request) -> None:
        chat.halt_column(place, talk, request)

    def edit(request: gr.Request, data: gr.EventData, *choices: Any) -> Iterator[list[Any]]:
        yield from chat.edit(place, *_edited(data), request, *choices)

    return again, halt, edit


def _edited(data: gr.EventData) -> tuple[int, str]:
    """Which message was edited, and its new text.  Gradio's own `EditData` takes whatever a request holds."""
    told = data._data if isinstance(data._data, dict) else {}
    index, text = told.get("index"), told.get("value")
    message = index[0] if isinstance(index, list) and index else index
    if isinstance(message, bool) or not isinstance(message, int) or message < 0 or not isinstance(text, str):
        raise ConfigError("edit", "the request names no message and its new text; edit a prompt on the page")
    return message, from_html(text)


def _voting(chat: Chat, choice: str) -> Any:
    def vote(talk: Talk) -> list[Any]:
        return chat.vote(choice, talk)

    return vote


def _draw() -> SimpleNamespace:
    parts = SimpleNamespace(talk=gr.State(Talk()))
    with gr.Row():
        parts.run = listed(
            label="Finished run",
            info="until there is one, the bundled model as it is",
            elem_id="chat-run",
            scale=3,
            interactive=True,
        )
        parts.names = listed(
            value=list(DEFAULT_COLUMNS),
            label="Columns (one to four)",
            info="Of this run or of others; an adapter's folder or hub id as adapter@FOLDER",
            multiselect=True,
            max_choices=grammar.MOST,
            allow_custom_value=True,
            elem_id="columns",
            scale=4,
            min_width=240,
        )
        hidden = "a new conversation, names hidden until the vote"
        parts.blind = gr.Checkbox(label="Blind", info=hidden, elem_id="blind", elem_classes="tick", scale=2)
    with gr.Row():
        parts.placement = gr.HTML(elem_id="placement")
        parts.free = gr.Button("Free memory", elem_id="free", size="sm", scale=0, min_width=120)
    _draw_columns(parts)
    _draw_votes(parts)
    _draw_prompt(parts)
    with gr.Accordion("System prompt and sampling", open=False):
        _draw_sampling(parts)
    parts.queued = gr.HTML(elem_id="place-in-queue")
    parts.latency = gr.HTML(elem_id="latency")
    with gr.Accordion("Differences", open=True):
        with gr.Row():
            left = listed(label="Left", elem_id="left", interactive=True, scale=1)
            right = listed(label="Right", elem_id="right", interactive=True, scale=1)
        parts.compared = [left, right, gr.HTML(elem_id="differences")]
    return parts


def _draw_sampling(parts: SimpleNamespace) -> None:
    parts.system = gr.Textbox(label="System prompt", info="The run's own is filled in", lines=2, elem_id="system")
    with gr.Row():
        parts.sampling = controls.draw(GenerationSettings, "Sampling")
    parts.order = gr.Radio(
        list(get_args(Order)),
        value=get_args(Order)[0],
        label="Timing",
        info="Columns stream together, one pass each, or each runs alone; a column's times are its own either way",
        elem_id="order",
    )


def _draw_columns(parts: SimpleNamespace) -> None:
    parts.heads, parts.chats, parts.feet, parts.columns, parts.again, parts.halts = [], [], [], [], [], []
    with gr.Row(elem_id="answers"):
        for place in SLOTS:
            visible = place < len(DEFAULT_COLUMNS)
            with gr.Column(min_width=240, elem_id=f"column-{place}", visible=visible) as column:
                parts.columns.append(column)
                parts.heads.append(gr.HTML(show.slot_head(Talk(), place, None, ""), elem_id=f"head-{place}"))
                parts.chats.append(_draw_chat(place))
                parts.feet.append(gr.HTML(show.slot_foot(None, False), elem_id=f"foot-{place}"))
                with gr.Row():
                    parts.again.append(gr.Button("Again", size="sm", elem_id=f"again-{place}", min_width=60))
                    parts.halts.append(gr.Button("Stop this", size="sm", elem_id=f"halt-{place}", min_width=60))


def _draw_chat(place: int) -> gr.Chatbot:
    return gr.Chatbot(
        height=360,
        show_label=False,
        elem_id=f"chat-{place}",
        render_markdown=False,
        latex_delimiters=[],
        feedback_options=None,
        editable="user",
        buttons=["copy"],
        placeholder="Ask something below.",
    )


def _draw_votes(parts: SimpleNamespace) -> None:
    with gr.Row():
        labels = [f"{show.letter(place)} is best" for place in SLOTS]
        ids = [*(f"vote-{place}" for place in SLOTS), "vote-tie", "vote-bad"]
        parts.votes = [
            gr.Button(label, visible=False, size="sm", elem_id=name, min_width=90)
            for label, name in zip([*labels, "Tie", "All bad"], ids, strict=True)
        ]


def _draw_prompt(parts: SimpleNamespace) -> None:
    parts.taken, parts.back = (
        gr.Textbox(label=f"Prompt {what}", visible="hidden") for what in ("taken in", "given back")
    )
    with gr.Row(equal_height=True, elem_id="ask"):
        hint = "Ask all columns the same thing"
        parts.prompt = gr.Textbox(
            placeholder=hint, label="Prompt", show_label=False, max_lines=4, scale=6, elem_id="prompt"
        )
        parts.send = gr.Button("Send", variant="primary", elem_id="send", scale=1, min_width=90)
        parts.stop = gr.Button("Stop", elem_id="stop-answer", scale=1, min_width=90)
        parts.retry = gr.Button("Retry", elem_id="retry", scale=1, min_width=90)
        parts.clear = gr.Button("Clear", elem_id="clear", scale=1, min_width=90)
    with gr.Row():
        parts.new_seed = gr.Button("New seed", size="sm", elem_id="new-seed")
        parts.greedy = gr.Button("All greedy", size="sm", elem_id="greedy")
        parts.keep = gr.Button("Add to report", size="sm", elem_id="keep")
    label = "Held-out prompts: no training sees them"
    parts.examples = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[], type="index", label=label, elem_id="examples"
    )
