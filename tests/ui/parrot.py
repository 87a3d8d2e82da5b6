"""An engine for the Chat tab's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qlora_demo.errors import DeviceBusy
from qlora_demo.records import Answer, AnswerRequest, Progress
from qlora_demo.system.halt import Halt


class Parrot:
    """An engine that answers with how often it was asked; busy, or stopped while it loads, where that is asked for.
    ``heard`` is what it was given, ``meanwhile`` what happens while it answers; an ``error`` is of one ``failing``
    column, or of all."""

    def __init__(self) -> None:
        self.asked = 0
        self.heard: list[list[str]] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.busy = self.stopped = False
        self.error, self.failing = "", ""

    def resident(self) -> tuple[Any, ...]:
        return ()

    def plan(self, columns: Any) -> Any:
        raise DeviceBusy("device: no room")

    def load(self, columns: Any, halt: Halt) -> Iterator[Progress]:
        yield Progress("loading", 0.0)
        if self.busy:
            raise DeviceBusy("device: held by training")
        if self.stopped:
            halt.set()

    def answer(self, request: AnswerRequest, halt: Halt) -> Iterator[tuple[Answer, ...]]:
        if halt.is_set():
            return
        self.asked += 1
        errors = {one.name: self.error * (self.failing in ("", one.name)) for one in request.columns}
        said = {name: "" if error else f"answer {self.asked}" for name, error in errors.items()}
        self.heard.append([said["content"] for said in request.conversations[request.columns[-1].name]])
        yield tuple(Answer(name, text[:4]) for name, text in said.items())
        self.meanwhile()
        yield tuple(Answer(name, text, finish="stop", error=errors[name]) for name, text in said.items())
