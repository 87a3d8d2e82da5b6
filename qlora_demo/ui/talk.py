"""One visitor's conversations, one per column.  Imports no gradio: plain data and what may happen to it."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..errors import ConfigError
from ..records import Answer, Column, Message
from ..rows.formats import check_characters
from ..system.halt import Halt

_SIGNS = {"<": "&lt;", "&": "&amp;"}
_READ_BACK = {name: sign for sign, name in _SIGNS.items()}
_PATIENCE = 20.0
"""Seconds: an answer that is stopped ends after the passes it is in, or after the model it loads."""


@dataclass(frozen=True)
class Exchange:
    """A prompt as one column has it, and its answer, None while that grows; ``number`` is the prompt's in the talk."""

    number: int
    prompt: str
    answer: str | None = None


@dataclass
class Talk:
    """One visitor's conversations, all with one run and one system prompt.

    ``columns`` stand in the order shown, ``asked`` are those that the last prompt, which has this ``number``, went to,
    and ``answers`` hold no others than those to it.  While ``blind``, names and figures are not shown; a vote on the
    stored ``comparison`` ends that.  ``since``: of each column that was asked, when its adapter took the place of one
    before it (`RunStore.adapter_since`).  ``replaced``: what the last prompt is to take the place of, by column.
    ``instead``: what stands in its place since its answer came to nothing.
    """

    run: str = ""
    system: str = ""
    since: dict[str, float] = field(default_factory=dict)
    prompt: str = ""
    number: int = 0
    blind: bool = False
    comparison: str = ""
    columns: tuple[Column, ...] = ()
    asked: tuple[str, ...] = ()
    turns: dict[str, list[Exchange]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    replaced: dict[str, list[Exchange]] = field(default_factory=dict)
    instead: Talk | None = None

    def slot(self, place: int) -> Column | None:
        """The column shown at a place; None where there is none."""
        return self.columns[place] if place < len(self.columns) else None

    @property
    def shown(self) -> dict[str, Answer]:
        """The answers of the columns that are shown, in their order."""
        return {column.name: self.answers[column.name] for column in self.columns if column.name in self.answers}

    @property
    def told(self) -> list[Answer]:
        """Of the columns that were asked and have said something, if only why they could not."""
        return [self.answers[name] for name in self.asked if name in self.answers]

    @property
    def failed(self) -> str:
        """The first reason where every column that said something said only why it could not; else nothing."""
        errors = [answer.error for answer in self.told]
        return errors[0] if errors and all(errors) else ""

    @property
    def ended(self) -> bool:
        """Whether every column that was asked has said all that it will."""
        told = (self.answers.get(name, Answer(name)) for name in self.asked)
        return all(answer.finish or answer.error for answer in told)


class Stop(Halt):
    """The end of an answer; where it is ``forgotten``, nothing of it is to be seen any more."""

    forgotten = False


class Stops:
    """The answer in progress of each visitor, to be stopped as a whole or column by column."""

    def __init__(self) -> None:
        self._halts: dict[str, Stop] = {}
        self._ended = threading.Condition()

    def new(self, visitor: str) -> Stop:
        """For an answer that begins; refused while this visitor's last one still grows, and after a moment's patience
        for one that is being stopped."""
        with self._ended:
            old = self._halts.get(visitor)
            patience = _PATIENCE if old is not None and old.is_set() else 0
            if not self._ended.wait_for(lambda: visitor not in self._halts, patience):
                raise ConfigError("prompt", "the last answer is still growing; wait for it or press Stop")
            halt = self._halts[visitor] = Stop()
            return halt

    @contextmanager
    def one(self, visitor: str) -> Iterator[Stop]:
        """An answer, for as long as the block."""
        halt = self.new(visitor)
        try:
            yield halt
        finally:
            halt.set()
            self.done(visitor)

    def done(self, visitor: str) -> None:
        with self._ended:
            self._halts.pop(visitor, None)
            self._ended.notify_all()

    def grows(self, visitor: str) -> bool:
        """Whether an answer of this visitor has not ended."""
        return visitor in self._halts

    def set(self, visitor: str, column: str = "") -> None:
        if (halt := self._halts.get(visitor)) is not None:
            halt.set(column)

    def forget(self, visitor: str) -> None:
        """Stop an answer that is not to be seen any more."""
        if (halt := self._halts.get(visitor)) is not None:
            halt.forgotten = True
            halt.set()


def copied(talk: Talk) -> Talk:
    """The same talk, to be changed while the other stays as it was."""
    return replace(
        talk, turns={name: list(turns) for name, turns in talk.turns.items()}, answers=dict(talk.answers), replaced={}
    )


def with_columns(talk: Talk, run: str | None, columns: tuple[Column, ...]) -> Talk:
    """The talk with other columns shown, unless it is with another run or waits for a vote; what was said in those that
    are not shown is kept."""
    same = {column.name for column in columns} == {column.name for column in talk.columns}
    return talk if same or talk.blind or talk.run != run else replace(talk, columns=columns)


def require_voted(talk: Talk) -> None:
    """Raises `ConfigError` while answers wait for a vote."""
    if talk.blind:
        raise ConfigError("vote", "the last answers wait for a vote; say which is best, or that none is")


def with_prompt(talk: Talk, text: str, fresh: Talk) -> Talk:
    """The talk with one more prompt in every column of `fresh`, which says what is chosen now; a new one where run, an
    adapter or the system prompt changed, and for a blind prompt: by what a column said before everybody would know it.
    Blind columns are shuffled for each prompt."""
    if not text.strip():
        raise ConfigError("prompt", "it is empty; type something or pick an example")
    check_characters(text + fresh.system, "prompt: it")
    require_voted(talk)
    as_it_was = all(fresh.since.get(name, at) == at for name, at in talk.since.items())
    same = (talk.run, talk.system) == (fresh.run, fresh.system) and as_it_was and not fresh.blind
    turns = {name: list(column) for name, column in talk.turns.items()} if same else {}
    asked = tuple(column.name for column in fresh.columns)
    for name in asked:
        turns.setdefault(name, []).append(Exchange(talk.number + 1, text))
    columns = tuple(random.sample(fresh.columns, len(fresh.columns))) if fresh.blind else fresh.columns
    since = talk.since | fresh.since if same else fresh.since
    replaced = talk.replaced if same else {}
    new = replace(fresh, since=since, prompt=text, number=talk.number + 1, columns=columns, replaced=replaced)
    return replace(new, asked=asked, turns=turns, answers={})


def conversation(talk: Talk, name: str) -> tuple[Message, ...]:
    """What a column's model is given."""
    opening: list[Message] = [{"role": "system", "content": talk.system}] if talk.system.strip() else []
    return (*opening, *_said(talk.turns.get(name, [])))


def earlier(talk: Talk, name: str) -> list[Message]:
    """What was said in a column before the last prompt."""
    return _said([one for one in talk.turns.get(name, []) if one.number < talk.number])


def settle(talk: Talk) -> None:
    """Put the answers into the conversations, so the next turn sees them; where there is none, take the prompt back,
    and let stand what it was to replace."""
    for name in talk.asked:
        answer, last = talk.answers.get(name), talk.turns[name].pop()
        answered = answer is not None and not answer.error
        talk.turns[name] += [replace(last, answer=answer.text)] if answer and answered else talk.replaced.get(name, [])
    talk.replaced = {}


def take_back(talk: Talk, names: Iterable[str]) -> str:
    """Remove the last prompt, and its answers in these columns; the prompt."""
    if not talk.prompt:
        raise ConfigError("prompt", "there is nothing to retry; send a prompt first")
    for name in talk.turns.keys() & set(names):
        _cut(talk, name, talk.number)
    talk.number -= 1
    return talk.prompt


def ask_again(talk: Talk, place: int) -> None:
    """Put the last prompt once more to the column at a place, and to no other."""
    require_voted(talk)
    column = talk.slot(place)
    if column is None or column.name not in talk.answers:
        raise ConfigError("prompt", "this column has no answer yet; send a prompt first")
    _cut(talk, column.name, talk.number)
    talk.turns[column.name].append(Exchange(talk.number, talk.prompt))
    talk.answers.pop(column.name)
    talk.asked = (column.name,)


def cut_before(talk: Talk, place: int, message: int) -> None:
    """Forget, in every column, the prompt that a column's message is of, and all that followed."""
    column = talk.slot(place)
    shown = talk.turns.get(column.name, []) if column else []
    if message >= 2 * len(shown):
        raise ConfigError("edit", f"this column has no message {message}; edit a prompt that is shown")
    for name in talk.turns:
        _cut(talk, name, shown[message // 2].number)


def messages(talk: Talk, name: str) -> list[Message]:
    """What a column shows, the growing answer included."""
    shown = _said(talk.turns.get(name, []))
    growing = talk.answers.get(name)
    if growing is not None and shown and shown[-1]["role"] == "user":
        shown.append({"role": "assistant", "content": growing.text or "…"})
    return shown


def _said(turns: Sequence[Exchange]) -> list[Message]:
    said: list[Message] = []
    for one in turns:
        said.append({"role": "user", "content": one.prompt})
        if one.answer is not None:
            said.append({"role": "assistant", "content": one.answer})
    return said


def _cut(talk: Talk, name: str, number: int) -> None:
    """Forget, in one column, the prompts from a number on, unless none takes their place."""
    talk.replaced[name] = [one for one in talk.turns[name] if one.number >= number]
    talk.turns[name] = [one for one in talk.turns[name] if one.number < number]


def as_html(text: str) -> str:
    """A text as a chatbot shows it unchanged: also without Markdown it takes for HTML what looks like a tag or like a
    sign's name, and would load the picture that an answer names.  All else is left alone, for *Copy* copies it so."""
    return re.sub(r"<(?=[a-zA-Z/!?])|&(?=[#\w])", lambda sign: _SIGNS[sign[0]], text)


def from_html(text: str) -> str:
    """What `as_html` was given."""
    return re.sub("&lt;|&amp;", lambda name: _READ_BACK[name[0]], text)
