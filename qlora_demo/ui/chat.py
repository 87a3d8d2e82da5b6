"""What the Chat tab's buttons do: ask, answer again, stop, vote, compare.

Every handler returns values for the same things on the page, in the order of `Chat.draw`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from .. import columns as grammar
from ..catalog import BUNDLED_MODELS, DEFAULT_COLUMNS
from ..config import GenerationSettings
from ..errors import ConfigError, DemoError
from ..records import AnswerRequest, Message, Order
from ..results.answers import kept
from ..results.reporting import keep_conversation
from ..results.votes import NewComparison
from ..services import Services
from ..visitors import visiting
from ..visitors.access import Visitor
from . import controls
from . import render_answers as show
from .gate import visitor_of
from .listed import renewed
from .render import problem
from .run_choices import column_choices, examples, needed_run
from .talk import (
    Stop,
    Stops,
    Talk,
    as_html,
    ask_again,
    conversation,
    copied,
    cut_before,
    earlier,
    messages,
    settle,
    take_back,
    with_columns,
    with_prompt,
)

SLOTS = range(grammar.MOST)


@dataclass(frozen=True)
class Press:
    """One press of a button that asks: what was said ``before``, what is chosen now (``fresh``), its end, and whether
    its answers take the place of others."""

    asker: Visitor
    before: Talk
    fresh: Talk
    settings: GenerationSettings
    order: Order
    halt: Stop
    replaces: bool


class Chat:
    """The tab's state is each visitor's `Talk`; this holds what all visitors share."""

    def __init__(self, services: Services, sampling: list[str]) -> None:
        self.services = services
        self.sampling = sampling
        self.stops = Stops()

    def ask(self, text: str, request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        """One more prompt to every chosen column.  It is told once as taken in, for the next may be typed meanwhile;
        where nothing answers it is given back."""
        with self._pressed(request, choices) as press:
            talk = with_prompt(press.before, text or "", press.fresh)
            taken: Any = text
            shown: list[Any] = []
            try:
                for shown in self._answer(talk, press):
                    yield [taken, gr.skip(), *shown]
                    taken = gr.skip()
            except DemoError:
                yield [gr.skip(), text if shown else gr.skip(), *self.draw(press.before)]
                raise
            if not press.halt.forgotten and (talk.failed or not talk.told):
                yield [gr.skip(), text, *[gr.skip()] * len(shown)]

    def retry(self, request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        """The last prompt once more, to the columns that are chosen now."""
        with self._pressed(request, choices, replaces=True) as press:
            talk = copied(press.before)
            text = take_back(talk, [column.name for column in press.fresh.columns])
            yield from self._answer(with_prompt(talk, text, press.fresh), press)

    def again(self, place: int, request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        """The last prompt once more, in one column only."""
        with self._pressed(request, choices, replaces=True) as press:
            talk = copied(press.before)
            self._require_same_adapters("prompt", talk)
            ask_again(talk, place)
            yield from self._answer(talk, press)

    def edit(self, place: int, message: int, text: str, request: gr.Request, *choices: Any) -> Iterator[list[Any]]:
        """Another wording of an earlier prompt; what followed it is forgotten in every column."""
        with self._pressed(request, choices, replaces=True) as press:
            talk = copied(press.before)
            cut_before(talk, place, message)
            yield from self._answer(with_prompt(talk, text, press.fresh), press)

    def halt(self, request: gr.Request) -> None:
        """Stop this visitor's answer after the pass it is in."""
        self.stops.set(_visitor(request))

    def halt_column(self, place: int, talk: Talk, request: gr.Request) -> None:
        """Stop one column of this visitor's answer; the others go on."""
        if (column := talk.slot(place)) is not None:
            self.stops.set(_visitor(request), column.name)

    def forget(self, request: gr.Request) -> list[Any]:
        """Begin a new conversation; an answer that still grows is stopped and not shown again."""
        self.stops.forget(_visitor(request))
        return self.draw(Talk())

    def release(self, talk: Talk) -> list[Any]:
        """Free the models and the device."""
        self.services.jobs.require_models()
        self.services.engine.release()
        return self.draw(talk)

    def vote(self, choice: str, talk: Talk) -> list[Any]:
        """Keep a vote and show who is who; ``choice`` is a place's number, a tie, or that all are bad."""
        if not talk.comparison:
            raise ConfigError("vote", "there is nothing to vote on; send a prompt in blind mode first")
        column = talk.slot(int(choice)) if choice.isdecimal() else None
        self.services.votes.vote(talk.comparison, column.name if column else choice)
        return self.draw(replace(talk, blind=False, comparison=""))

    def keep(self, talk: Talk) -> None:
        """Put the last prompt and its answers into the run's report."""
        if talk.run in BUNDLED_MODELS:
            raise ConfigError("report", f"only runs have one, and {talk.run} is not trained yet; train it, then ask")
        run = self.services.runs.get(needed_run(talk.run))
        if not talk.ended:
            raise ConfigError("report", "an answer still grows; wait for it or press Stop")
        self._require_same_adapters("report", talk)
        before = {name: earlier(talk, name) for name in talk.shown}
        count = keep_conversation(run, talk.system, talk.prompt, list(talk.shown.values()), before)
        gr.Info(
            f"The report of {run.id} holds {count} conversation{'s' * (count > 1)} now; make it on the Evaluate tab."
        )

    def choose_run(self, run: str | None, names: list[str], request: gr.Request) -> list[Any]:
        """Another run is another conversation, with its own columns, system prompt and examples."""
        self.stops.forget(_visitor(request))
        prompts, system = examples(self.services.runs, run)
        chosen = ["base"] if run in BUNDLED_MODELS else list(DEFAULT_COLUMNS) if names == ["base"] else names
        return [
            renewed(column_choices(self.services.runs, run), chosen, names),
            system,
            gr.Dataset(samples=[[text] for text in prompts]),
            *self.draw(Talk()),
        ]

    def example(self, index: Any, run: str | None) -> str:
        """One of a run's examples, from the disk: the server may have forgotten what it showed."""
        prompts, _ = examples(self.services.runs, run)
        if not isinstance(index, int) or not 0 <= index < len(prompts):
            raise ConfigError("example", f"{index!r} is none of {len(prompts)}; choose the run again")
        return prompts[index]

    def choose(self, run: str | None, names: list[str], talk: Talk, request: gr.Request) -> list[Any]:
        """The talk with the chosen columns, and what was said in them; an answer that grows or waits for a vote keeps
        its own, and names that are none change nothing."""
        shown = talk
        with suppress(DemoError):  # `place` tells it
            if run and names and not self.stops.grows(_visitor(request)):
                shown = with_columns(talk, run, grammar.parse_all(names, run))
        return [gr.skip()] * len(self.draw(talk)) if shown is talk else self.draw(shown)

    def place(self, run: str | None, names: list[str], talk: Talk, request: gr.Request) -> list[Any]:
        """The placement of the chosen columns, and as many slots as the talk has columns or will have."""
        count = len(talk.columns) if talk.prompt else len(names)
        slots = [gr.Column(visible=at < count) for at in SLOTS]
        if not run or not names:
            return ["", *slots]
        try:
            columns = grammar.parse_all(names, run)
            if self._asker(request).role == "visitor":
                visiting.finished_only(self.services.runs, columns)
            return [show.placement(self.services.plan(columns)), *slots]
        except DemoError as exc:
            return [problem(str(exc)), *slots]

    def differences(self, talk: Talk, left: str | None, right: str | None) -> str:
        """Two answers, word by word."""
        if talk.blind or left not in talk.answers or right not in talk.answers:
            return ""
        return show.difference(talk.answers[left], talk.answers[right])

    def draw(self, talk: Talk, waiting: str = "loads with the first prompt") -> list[Any]:
        """The talk, the place in the queue, every slot's head, conversation and foot, the vote's buttons, the bars,
        what can be compared."""
        return [
            talk,
            "",
            *self.draw_slots(talk, waiting),
            *_vote_buttons(talk),
            show.latency(talk.shown, talk.blind),
            *_compared(talk),
        ]

    def draw_slots(self, talk: Talk, waiting: str) -> list[Any]:
        """Heads, conversations and feet, each for every slot."""
        resident = {one.column: one for one in self.services.engine.resident()}
        heads, chats, feet = [], [], []
        for at in SLOTS:
            column = talk.slot(at)
            known = column is not None and column in resident
            heads.append(show.slot_head(talk, at, resident[column] if known and column else None, waiting))
            chats.append(verbatim(messages(talk, column.name)) if column else [])
            feet.append(show.slot_foot(talk.answers.get(column.name) if column else None, talk.blind))
        return [*heads, *chats, *feet]

    @contextmanager
    def _pressed(self, request: gr.Request, choices: Sequence[Any], replaces: bool = False) -> Iterator[Press]:
        """What is asked, read when this visitor's last answer has ended: that one may still be at what was said."""
        with self.stops.one(_visitor(request)) as halt:
            run, names, system, blind, order, talk, *values = choices
            settings = controls.read(GenerationSettings, self.sampling, values)
            columns = grammar.parse_all(names, needed_run(run))
            since = self._since(run, [column.name for column in columns])
            fresh = Talk(run, system or "", since, blind=bool(blind), columns=columns)
            yield Press(self._asker(request), talk.instead or talk, fresh, settings, order, halt, replaces)

    def _answer(self, talk: Talk, press: Press) -> Iterator[list[Any]]:
        """Draw the talk as its columns answer; what was said before stands again where none does."""
        asked = tuple(column for column in talk.columns if column.name in talk.asked)
        conversations = {column.name: conversation(talk, column.name) for column in asked}
        if press.asker.role == "visitor":
            visiting.finished_only(self.services.runs, asked)
            visiting.short_enough(self.services.settings.limits, press.settings, list(conversations.values()))
        if talk.blind:
            self.services.votes.require_room()
        self.services.jobs.require_models()
        stands = press.before
        try:
            yield from self._turn(talk, AnswerRequest(asked, conversations, press.settings, press.order), press)
            settle(talk)
            if press.halt.forgotten:  # what was on its way to the page when it was cleared is cleared as well
                stands = Talk()
            elif press.replaces and talk.failed:
                raise DemoError(talk.failed)
            elif talk.told:
                stands = self._kept(talk, press.settings)
        except DemoError:
            yield self.draw(press.before)
            raise
        finally:
            talk.instead = None if stands is talk else stands
        yield self.draw(stands)

    def _turn(self, talk: Talk, request: AnswerRequest, press: Press) -> Iterator[list[Any]]:
        """Wait for the models' thread, then have them answer."""
        with self.services.waiting.turn(press.asker, press.halt) as places:
            drawn = self.draw(talk)
            yield drawn
            for place in places:
                yield [gr.skip(), show.queued(place), *[gr.skip()] * (len(drawn) - 2)]
            if not press.halt.is_set():
                self.services.jobs.require_models()
                if press.asker.role == "visitor":
                    visiting.evicts_nothing(self.services.plan, request.columns)
                yield from self._stream(talk, request, press.halt)

    def _stream(self, talk: Talk, request: AnswerRequest, halt: Stop) -> Iterator[list[Any]]:
        """Load what is asked, then answer; both are seen as they go."""
        rest = [gr.skip()] * (len(self.draw(talk)) - 2 - len(self.draw_slots(talk, "")))
        for progress in self.services.engine().load(request.columns, halt):
            yield [gr.skip(), "", *self.draw_slots(talk, progress.text), *rest]
        self.services.jobs.require_models()  # one may have begun meanwhile
        for answers in self.services.engine().answer(request, halt):
            talk.answers |= {one.column: one for one in answers}
            yield [gr.skip(), "", *self.draw_slots(talk, ""), *rest]

    def _asker(self, request: gr.Request) -> Visitor:
        return visitor_of(self.services.access, request)

    def _since(self, run: str, names: Iterable[str]) -> dict[str, float]:
        """Of each column since when its adapter is there; raises `RunError` where the run is gone."""
        if run not in BUNDLED_MODELS:
            self.services.runs.get(run)
        since = self.services.runs.adapter_since(run)
        return {name: since(name) for name in names}

    def _require_same_adapters(self, field: str, talk: Talk) -> None:
        if any(talk.since[name] != at for name, at in self._since(talk.run, talk.answers).items()):
            raise ConfigError(field, "answers are of an adapter before its run was resumed; send the prompt anew")

    def _kept(self, talk: Talk, settings: GenerationSettings) -> Talk:
        """A blind talk whose comparison is stored, to be voted on; one that has failed columns is shown as it is."""
        if not talk.blind:
            return talk
        answers = [talk.answers.get(column.name) for column in talk.columns]
        if any(answer is None or answer.error for answer in answers):
            return replace(talk, blind=False)
        new = NewComparison(
            run=talk.run,
            system=talk.system,
            prompt=talk.prompt,
            settings=settings.model_dump(),
            shown=tuple(column.name for column in talk.columns),
            answers={answer.column: kept(answer) for answer in answers if answer},
        )
        return replace(talk, comparison=self.services.votes.add(new))


def verbatim(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a `gr.Chatbot` shows them unchanged: of a plain string it strips the margin and widens the tabs."""
    return [{"role": turn["role"], "content": [{"type": "text", "text": as_html(turn["content"])}]} for turn in turns]


def _vote_buttons(talk: Talk) -> list[Any]:
    ready = bool(talk.comparison)
    places = [gr.Button(visible=ready and at < len(talk.columns)) for at in SLOTS]
    return [*places, gr.Button(visible=ready), gr.Button(visible=ready)]


def _compared(talk: Talk) -> list[Any]:
    """The two answers to set side by side; by default the last two."""
    known = [column for column in talk.columns if column.name in talk.answers]
    if talk.blind or len(known) < 2:
        return [gr.update(choices=[], value=None), gr.update(choices=[], value=None), ""]
    choices = [(grammar.title(column, talk.run), column.name) for column in known]
    left, right = known[-2].name, known[-1].name
    shown = show.difference(talk.answers[left], talk.answers[right])
    return [gr.update(choices=choices, value=left), gr.update(choices=choices, value=right), shown]


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)
