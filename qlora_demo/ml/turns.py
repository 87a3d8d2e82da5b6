"""Several columns answer one prompt: by fair turns, or one after the other.

In turn, each column does one forward pass per round; no two passes overlap, so a column's times are its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import torch

from ..errors import DemoError
from ..records import Answer, AnswerRequest, GenerationChunk, Proof
from ..system.halt import Halt
from .device import ran_out
from .generate import add_pass, stream
from .variants import Loaded, prove

UPDATE_SECONDS = 1 / 12

Passes = Iterator[tuple[GenerationChunk, Proof]]
"""Of one column."""


def answers(
    columns: Sequence[Loaded], request: AnswerRequest, bandwidth: float, halt: Halt
) -> Iterator[tuple[Answer, ...]]:
    """Snapshots of all columns, at most twelve a second, the last one when each has ended or was stopped."""
    done = {one.resident.column.name: _begin(one, bandwidth) for one in columns}
    waiting = deque((one.resident.column.name, _column(one, request)) for one in columns)
    together = len(waiting) if request.order == "in turn" else 1
    shown = 0.0
    while waiting:
        active = [waiting.popleft() for _ in range(min(together, len(waiting)))]
        for _ in _rounds(active, done, halt):
            if time.monotonic() - shown >= UPDATE_SECONDS:
                yield tuple(done.values())
                shown = time.monotonic()
    yield tuple(done.values())


def _rounds(active: list[tuple[str, Passes]], done: dict[str, Answer], halt: Halt) -> Iterator[None]:
    """Step the active columns until all have ended; another one begins each round."""
    columns = dict(active)
    rounds = 0
    while columns:
        order = deque(columns)
        order.rotate(-rounds)
        rounds += 1
        for name in order:
            done[name] = replace(done[name], finish="stopped") if halt.is_set(name) else turn(done[name], columns[name])
            if done[name].finish or done[name].error:
                columns.pop(name).close()  # type: ignore[attr-defined]
        yield


def turn(answer: Answer, column: Passes) -> Answer:
    """The answer after one more pass of its column; an error stays in the column."""
    chunk = None
    try:
        chunk, proof = next(column)
    except DemoError as exc:
        error = str(exc)
    except (RuntimeError, MemoryError) as exc:
        if not ran_out(exc):
            raise
        error = "device: out of memory; shorten the conversation or choose fewer columns"
    if chunk is None:
        torch.cuda.empty_cache()
        return replace(answer, error=error)
    return replace(
        answer,
        text=answer.text + chunk.text,
        token_ids=chunk.token_ids,
        timing=add_pass(answer.timing, chunk),
        finish=chunk.finish,
        proof=proof,
        decode=chunk.decode,
    )


def _begin(one: Loaded, bandwidth: float) -> Answer:
    resident = one.resident
    return Answer(
        resident.column.name, model_bytes=resident.model_bytes, read_bytes=resident.read_bytes, bandwidth=bandwidth
    )


def _column(one: Loaded, request: AnswerRequest) -> Passes:
    conversation = request.conversations[one.resident.column.name]
    with closing(
        stream(one.model, one.tokenizer, conversation, request.settings, one.activate, fast=one.fast)
    ) as chunks:
        for chunk in chunks:
            yield chunk, prove(one, chunk.fingerprint)
