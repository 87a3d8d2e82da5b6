"""What flows between the rooms: plain, frozen, without behaviour beyond arithmetic on their own fields."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["created", "checking", "queued", "starting", "loading", "running", "finished", "stopped", "failed"]
Finish = Literal["stop", "length", "stopped"]
Precision = Literal["bf16", "fp16", "fp32", "nf4", "fp4", "int8"]
BaseForm = Literal["16bit", "nf4", "nf4-single", "fp4", "fp4-single", "int8"]
"""How a frozen base is stored; ``-single``: without double quantization of the constants."""
AdapterUse = Literal["none", "on", "off", "merged"]
MergeBase = Literal["original", "dequantized"]
Recipe = Literal["base", "adapter", "merged", "merged-4bit"]
ExportKind = Literal["adapter", "merged", "merged-4bit"]
Order = Literal["in turn", "one after the other"]
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""

BEFORE: frozenset[Status] = frozenset({"created", "checking", "queued"})
"""No training process has begun."""
ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed"})


@dataclass(frozen=True)
class Choice:
    """Something the situation decided, and why: shown on the page and kept with the run."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Lighter:
    """A change of a config that takes less memory, and how many bytes less by the plan."""

    changes: dict[str, Any]
    saves_bytes: int


CHECKPOINTING = "Gradient checkpointing"
"""What the choice is called."""


LOG_ENDS = "; its log ends: "
"""What stands before the end of the log in the error of a run that died."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands.  Times are seconds since the epoch; ``summary`` holds the end's figures; a failed run was
    ``refused`` where its request was wrong (a bad row, an unknown model) and nothing was trained.  ``lighter`` names
    changes that would have taken less memory, the largest saving first.  ``earlier_seconds``: of the sittings before
    the one that began at ``started_at``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - what checks it as it is read

    status: Status
    max_steps: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    error: str = ""
    refused: bool = False
    choices: tuple[Choice, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    lighter: tuple[Lighter, ...] = ()
    earlier_seconds: float = 0.0

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def cause(self) -> str:
        """Why it failed, without the end of a dead process's log."""
        return self.error.partition(LOG_ENDS)[0]

    @property
    def checkpointing(self) -> bool | None:
        """Whether activations are recomputed; None before that is decided."""
        return next((one.value == "on" for one in self.choices if one.what == CHECKPOINTING), None)

    def seconds(self, now: float) -> float | None:
        """How long the run has been at work, loading included; None before it began."""
        return None if self.started_at is None else self.earlier_seconds + (self.ended_at or now) - self.started_at


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
    decode: str
    """How the passes after the first are done: eagerly and why, or by a captured step."""


def percentile_95(values: Sequence[float]) -> float:
    """The value that 95% of them are at most, by nearest rank: one of them, and the largest of fewer than 20."""
    return sorted(values)[-(-95 * len(values) // 100) - 1]


@dataclass(frozen=True)
class AnswerTiming:
    """An answer's own passes, summed; other columns' turns are not in it.

    ``ttft_seconds``: preparation, prefill and first token.  ``total_seconds``: all passes.  ``passes``: seconds of each
    pass after the first, one output token each.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    ttft_seconds: float = 0.0
    total_seconds: float = 0.0
    passes: tuple[float, ...] = ()

    @property
    def decode_seconds(self) -> float:
        return self.total_seconds - self.ttft_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Decode rate: tokens after the first over the time they took; None where there is none."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else None

    @property
    def tpot_median_seconds(self) -> float | None:
        """Median time per output token after the first; None where there is none."""
        return statistics.median(self.passes) if self.passes else None

    @property
    def tpot_p95_seconds(self) -> float | None:
        """The time that 95% of the output tokens after the first took at most; None where there is none."""
        return percentile_95(self.passes) if self.passes else None


@dataclass(frozen=True)
class Column:
    """What one column runs.  ``name`` tells the columns of one request apart and is what columns.py parses;
    ``source`` is the run, folder or hub id of its adapter; ``onto`` None merges onto the base it was trained on."""

    name: str
    recipe: Recipe
    source: str
    onto: MergeBase | None = None


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
    """A column in memory.

    ``model_bytes`` counts every tensor it needs, ``read_bytes`` those that each new token reads.  ``shares`` names the
    column whose weights it uses.  ``load_seconds`` and ``warm_up_seconds`` are what the first use of its weights cost;
    no answer's timing holds them.
    """

    column: Column
    title: str
    precision: Precision
    adapter: AdapterUse
    model_bytes: int
    read_bytes: int
    shares: str = ""
    note: str = ""
    load_seconds: float = 0.0
    warm_up_seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    """One column's answer so far; ``finish`` is empty while it grows; ``error`` is set instead where it failed.

    ``read_bytes`` is what each new token reads of the weights, ``bandwidth`` the bytes per second that reading memory
    reached on this device.  ``decode`` is how its tokens after the first were decoded.
    """

    column: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    timing: AnswerTiming = AnswerTiming()
    finish: Finish | None = None
    proof: Proof | None = None
    model_bytes: int = 0
    read_bytes: int = 0
    bandwidth: float = 0.0
    error: str = ""
    decode: str = ""

    @property
    def bandwidth_share(self) -> float | None:
        """Weights read per second of decoding over what the device can read; None before the second token."""
        if not self.bandwidth or not self.timing.tpot_median_seconds:
            return None
        return self.read_bytes / self.timing.tpot_median_seconds / self.bandwidth


@dataclass(frozen=True)
class AnswerRequest:
    """The same settings for every column; each has its own conversation, by column name, ending in the user's turn."""

    columns: tuple[Column, ...]
    conversations: dict[str, tuple[Message, ...]]
    settings: Any
    order: Order = "in turn"


@dataclass(frozen=True)
class ExportRequest:
    """What should leave a run; ``onto`` None is the base that suits it, ``out`` None the run's own exports folder."""

    run: str
    what: ExportKind
    onto: MergeBase | None = None
    out: Path | None = None


@dataclass(frozen=True)
class DeviceInfo:
    """The device that models run on; memory in bytes."""

    kind: Literal["cuda", "cpu"]
    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Progress:
    """Where a long piece of work stands: ``fraction`` in 0..1, or None where it cannot be known."""

    text: str
    fraction: float | None = None


@dataclass(frozen=True)
class Note:
    """What the line at the top says about something in the background: ``fraction`` in 0..1 while it is under way,
    ``bad`` where somebody should see to it."""

    text: str
    fraction: float | None = None
    bad: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a long piece of work: where it stands, and the result so far, which is whole in the last step."""

    progress: Progress
    result: dict[str, Any] = field(default_factory=dict)


Report = Callable[[Progress], None]
