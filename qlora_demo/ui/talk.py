"""One visitor's conversations, one per column.  Imports no gradio: plain data and what may happen to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..records import Answer, Message


@dataclass
class Talk:
    """One visitor's conversations, one per column, all with one run and one system prompt; ``asked`` are the columns
    that the last prompt went to."""

    run: str = ""
    system: str = ""
    prompt: str = ""
    asked: tuple[str, ...] = ()
    turns: dict[str, list[Message]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


class Stops:
    """The stop flag of each visitor's answer in progress."""

    def __init__(self) -> None:
        self._flags: dict[str, threading.Event] = {}

    def new(self, visitor: str) -> threading.Event:
        """A flag for an answer that begins; refused while this visitor's last one still grows."""
        if visitor in self._flags:
            raise ConfigError("prompt", "the last answer is still growing; wait for it or press Stop")
        flag = self._flags[visitor] = threading.Event()
        return flag

    def done(self, visitor: str) -> None:
        self._flags.pop(visitor, None)

    def set(self, visitor: str) -> None:
        if (flag := self._flags.get(visitor)) is not None:
            flag.set()


def with_prompt(talk: Talk, text: str, run: str, names: list[str], system: str) -> Talk:
    """The talk with one more prompt in every named column; a new one where run or system prompt changed."""
    if not text.strip():
        raise ConfigError("prompt", "it is empty; type something or pick an example")
    if not names:
        raise ConfigError("columns", "none is chosen; tick at least one")
    same = talk.run == run and talk.system == system
    turns = {name: list(column) for name, column in talk.turns.items()} if same else {}
    answers = {name: answer for name, answer in talk.answers.items() if same and name not in names}
    for name in names:
        turns.setdefault(name, []).append({"role": "user", "content": text})
    return Talk(run, system, text, tuple(names), turns, answers)


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


def take_back(talk: Talk) -> str:
    """Remove the last prompt and its answers from the columns that have them; the prompt."""
    if not talk.prompt:
        raise ConfigError("prompt", "there is nothing to retry; send a prompt first")
    for turns in talk.turns.values():
        if len(turns) > 1 and turns[-2] == {"role": "user", "content": talk.prompt}:
            del turns[-2:]
    return talk.prompt


def messages(talk: Talk, name: str) -> list[Message]:
    """What a column shows, the growing answer included."""
    turns = list(talk.turns.get(name, []))
    growing = talk.answers.get(name)
    if growing is not None and turns and turns[-1]["role"] == "user":
        turns.append({"role": "assistant", "content": growing.text or "…"})
    return turns
