"""What flows between the rooms: plain, frozen, without behaviour beyond arithmetic on their own fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["created", "starting", "loading", "running", "finished", "stopped", "failed"]
Finish = Literal["stop", "length", "stopped"]
Precision = Literal["bf16", "fp16", "fp32", "nf4"]
AdapterUse = Literal["none", "on", "off", "merged"]
MergeBase = Literal["original", "dequantized"]
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""

ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed"})


@dataclass(frozen=True)
class Choice:
    """Something the situation decided, and why: shown on the page and kept with the run."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class RunState:
    """Where a run stands.  Times are seconds since the epoch; ``summary`` holds the end's figures; a failed run was
    ``refused`` where its request was wrong (a bad row, an unknown model) and nothing was trained."""

    status: Status
    max_steps: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    error: str = ""
    refused: bool = False
    choices: tuple[Choice, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True)
class TrainMetrics:
    """One line of metrics.jsonl: a training step, or a held-out evaluation (then ``eval_loss`` is set).

    ``step_seconds`` is the step's own time (forward, backward, optimizer), ``tokens`` the unpadded tokens seen in it,
    ``memory_bytes`` the peak so far: GPU memory allocated, or without a GPU the process's resident memory.
    """

    step: int
    time: float
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    token_accuracy: float | None = None
    step_seconds: float | None = None
    tokens: int | None = None
    memory_bytes: int | None = None
    eval_loss: float | None = None


@dataclass(frozen=True)
class GenerationChunk:
    """One forward pass of `stream()`.

    ``text`` is what the pass added, ``token_ids`` all new tokens so far, ``seconds`` this pass's own time on the
    synchronised device (the first one includes preparation and prefill: it is the time to first token).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    seconds: float
    finish: Finish | None
    fingerprint: str


@dataclass(frozen=True)
class AnswerTiming:
    """An answer's own passes, summed; other columns' turns are not in it.

    ``ttft_seconds``: preparation, prefill and first token.  ``total_seconds``: all passes.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    ttft_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def decode_seconds(self) -> float:
        return self.total_seconds - self.ttft_seconds

    @property
    def tokens_per_second(self) -> float:
        """Decode rate: tokens after the first over the time they took; 0 where there is none."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else 0.0


@dataclass(frozen=True)
class Proof:
    """What really answered, read from the model's modules in the pass itself, not from its label."""

    precision: Precision
    adapter: AdapterUse
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.precision} weights, adapter {self.adapter}, logits {self.fingerprint}"


@dataclass(frozen=True)
class Resident:
    """A variant in memory: ``model_bytes`` counts every tensor it needs, ``shares`` names the variant whose weights
    it uses instead of holding its own."""

    variant: str
    title: str
    precision: Precision
    adapter: AdapterUse
    model_bytes: int
    shares: str = ""
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """One column's answer so far; ``finish`` is empty while it grows; ``error`` is set instead where it failed."""

    variant: str
    text: str = ""
    timing: AnswerTiming = AnswerTiming()
    finish: Finish | None = None
    proof: Proof | None = None
    model_bytes: int = 0
    error: str = ""


@dataclass(frozen=True)
class AnswerRequest:
    """The same settings for every column; each column has its own conversation, ending in the user's turn."""

    run: str
    conversations: dict[str, tuple[Message, ...]]
    settings: Any


@dataclass(frozen=True)
class DeviceInfo:
    """The device that models run on; memory in bytes, ``kind`` is "cuda" or "cpu"."""

    kind: str
    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Progress:
    """Where a long piece of work stands: ``fraction`` in 0..1, or None where it cannot be known."""

    text: str
    fraction: float | None = None


Report = Callable[[Progress], None]
