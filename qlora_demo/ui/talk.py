"""One visitor's conversations, one per column.  Imports no gradio: plain data and what may happen to it."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import ConfigError
from ..halt import Halt
from ..records import Answer, Column, Message
from ..row_formats import check_characters

_SIGNS = {"<": "&lt;", "&": "&amp;"}
_READ_BACK = {name: sign for sign, name in _SIGNS.items()}
_PATIENCE = 20.0
"""Seconds: an answer that is stopped ends after the passes it is in, or after the model it loads."""


@dataclass
class Talk:
    """One visitor's conversations, all with one run and one system prompt.

    ``columns`` stand in the order shown, ``asked`` are those that the last prompt went to.  While ``blind``,
    names and figures are not shown; a vote on the stored ``comparison`` ends that.  ``forgotten``: cleared while it was
    being answered.
    """

    run: str = ""
    system: str = ""
    prompt: str = ""
    blind: bool = False
    comparison: str = ""
    columns: tuple[Column, ...] = ()
    asked: tuple[str, ...] = ()
    turns: dict[str, list[Message]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    forgotten: bool = False

    def slot(self, place: int) -> Column | None:
        """The column shown at a place; None where there is none."""
        return self.columns[place] if place < len(self.columns) else None


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

    def done(self, visitor: str) -> None:
        with self._ended:
            self._halts.pop(visitor, None)
            self._ended.notify_all()

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
    return replace(talk, turns={name: list(turns) for name, turns in talk.turns.items()}, answers=dict(talk.answers))


def with_prompt(talk: Talk, text: str, fresh: Talk) -> Talk:
    """The talk with one more prompt in every column of `fresh`, which says what is chosen now; a new one where run or
    system prompt changed.  Blind columns are shuffled for each prompt."""
    if not text.strip():
        raise ConfigError("prompt", "it is empty; type something or pick an example")
    check_characters(text + fresh.system, "prompt: it")
    if talk.blind:
        raise ConfigError("vote", "the last answers wait for a vote; say which is best, or that none is")
    names = tuple(column.name for column in fresh.columns)
    same = talk.run == fresh.run and talk.system == fresh.system
    turns = {name: list(column) for name, column in talk.turns.items()} if same else {}
    answers = {name: answer for name, answer in talk.answers.items() if same and name not in names}
    for name in names:
        turns.setdefault(name, []).append({"role": "user", "content": text})
    columns = tuple(random.sample(fresh.columns, len(fresh.columns))) if fresh.blind else fresh.columns
    return Talk(fresh.run, fresh.system, text, fresh.blind, "", columns, names, turns, answers)


def conversation(talk: Talk, name: str) -> tuple[Message, ...]:
    """What a column's model is given."""
    opening: list[Message] = [{"role": "system", "content": talk.system}] if talk.system.strip() else []
    return (*opening, *talk.turns[name])


def settle(talk: Talk) -> None:
    """Put the answers into the conversations, so the next turn sees them; where there is none, take the prompt back."""
    for name in talk.asked:
        answer, turns = talk.answers.get(name), talk.turns[name]
        if answer is None or answer.error:
            turns.pop()
        else:
            turns.append({"role": "assistant", "content": answer.text})


def take_back(talk: Talk, names: Sequence[str] | None = None) -> str:
    """Remove the last prompt and its answers from the named columns, or from all that have them; the prompt."""
    if not talk.prompt:
        raise ConfigError("prompt", "there is nothing to retry; send a prompt first")
    for name, turns in talk.turns.items():
        last = len(turns) > 1 and turns[-2] == {"role": "user", "content": talk.prompt}
        if last and (names is None or name in names):
            del turns[-2:]
    return talk.prompt


def cut_before(talk: Talk, place: int, message: int) -> None:
    """Forget, in every column, the prompt that a column's message is, and all that followed."""
    column = talk.slot(place)
    shown = talk.turns.get(column.name, []) if column else []
    count = sum(turn["role"] == "user" for turn in shown[:message])
    for turns in talk.turns.values():
        prompts = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
        if count < len(prompts):
            del turns[prompts[count] :]


def messages(talk: Talk, name: str) -> list[Message]:
    """What a column shows, the growing answer included."""
    turns = list(talk.turns.get(name, []))
    growing = talk.answers.get(name)
    if growing is not None and turns and turns[-1]["role"] == "user":
        turns.append({"role": "assistant", "content": growing.text or "…"})
    return turns


def as_html(text: str) -> str:
    """A text as a chatbot shows it unchanged: also without Markdown it takes for HTML what looks like a tag or like a
    sign's name, and would load the picture that an answer names.  All else is left alone, for *Copy* copies it so."""
    return re.sub(r"<(?=[a-zA-Z/!?])|&(?=[#\w])", lambda sign: _SIGNS[sign[0]], text)


def from_html(text: str) -> str:
    """What `as_html` was given."""
    return re.sub("&lt;|&amp;", lambda name: _READ_BACK[name[0]], text)
