"""What a benchmark measures, as plain data: one case per process, named as its row of the table is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import MOST_ROWS, TrainConfig
from ..plan.memory_plan import Kind
from .config import BenchmarkConfig, BenchmarkKind

LORA, QLORA = "LoRA, 16 bit", "QLoRA, NF4"
_METHODS: dict[str, dict[str, Any]] = {
    LORA: {"method": "lora", "init_lora_weights": "default"},
    QLORA: {"method": "qlora", "init_lora_weights": "default"},
}
_SWITCHES = {"": "off", ", checkpointing": "on"}
_OPTIMIZERS = {
    "torch's AdamW, state in the adapters' type": "adamw_torch",
    "8-bit AdamW, paged": "paged_adamw_8bit",
    "8-bit AdamW, not paged": "adamw_8bit",
}
"""Beside 32-bit AdamW, paged, which transformers has in no other form: the 8-bit pair tells what paging costs, where a
matrix of the adapter has the 100,000 values from which bitsandbytes pages."""
_FINE = 32
"""The last step of a bisection is no finer than this part of what fits."""
_NEAR = 16
"""The first step away from a guess is this part of it: plans err by less than ten per cent."""
WARM_UP_STEPS = 2
"""The optimizer's state is made in the first; the second is as all that follow."""

METHODS: dict[BenchmarkKind, str] = {
    "training": "Each case runs in a process of its own and trains on rows of random tokens, each of the maximum "
    f"length, through the app's own trainer: {WARM_UP_STEPS} warm-up steps, then the measured ones, timed with the "
    "device synchronised. Memory is the peak of each phase in the last warm-up step. Tokens/s is a step's mean "
    "tokens divided by the median step's time. The p95 step is reported for 20 steps or more, the longest step "
    "always.",
    "frontier": "Real training steps on rows of random tokens, two per trial: a trial fits if it ends within the "
    "budget. The longest row is searched for with a single row, the largest batch with rows as long as the settings "
    "say, both from the plan's estimate in steps that double, then by bisection, to within 3%. ≥: more may fit; the "
    "search ends at the model's longest context and at 1,024 rows, and so do the plan's figures.",
    "rank": "As the training benchmark, by rank and target layers. If rows are to be answered at the end, the "
    "settings' own data is used instead, for the number of steps in the settings, and the answers to held-out rows "
    "are scored.",
    "inference": "Each column runs in a process of its own. Prompts of random tokens are answered greedily, in turn "
    "by the loop that the chat uses and by the library's own generate(); figures are medians over all repeats, after "
    "a warm-up. The median and p95 per token are of single passes of our loop. Speed over generate() is of whole "
    "answers: the time after the first token, the library's divided by ours in the same repeat; the median of those "
    "ratios.",
}
"""How the figures come about, for whoever reads them."""


_ONE_STEP = ("model", "r", "target_modules", "max_length", "optim")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
READ: dict[BenchmarkKind, tuple[str, ...]] = {
    "training": (*_ONE_STEP, *_BATCH),
    "frontier": _ONE_STEP,
    "rank": ("model", "method", "max_length", *_BATCH, "optim", "dataset", "max_steps", "score_rows"),
    "inference": ("model", "method", "r", "target_modules"),
}
"""The training settings that a kind of benchmark is asked with; it chooses others itself, or has no use for them.
Inference of a run reads none: they are the run's."""


@dataclass(frozen=True)
class Case:
    """One measurement of a benchmark.  ``column`` is set for inference."""

    name: str
    config: TrainConfig
    column: str = ""


def cases(options: BenchmarkConfig, config: TrainConfig, kind: Kind) -> list[Case]:
    """Every case of a benchmark on a GPU or a CPU, in the order they are measured."""
    makers: dict[BenchmarkKind, Callable[[BenchmarkConfig, TrainConfig, Kind], list[Case]]] = {
        "training": _training,
        "frontier": _frontier,
        "rank": _rank,
        "inference": _inference,
    }
    return makers[options.kind](options, config, kind)


def _training(options: BenchmarkConfig, config: TrainConfig, kind: Kind) -> list[Case]:
    more: dict[str, dict[str, Any]] = {f"{QLORA}, constants not quantized": {"bnb_4bit_use_double_quant": False}}
    if kind == "cuda":
        more |= {f"{QLORA}, {told}": {"optim": optimizer} for told, optimizer in _OPTIMIZERS.items()}
    plain = config.changed(**_METHODS[QLORA], gradient_checkpointing="off")
    return [
        *_frontier(options, config, kind),
        *(_at_once(config) if kind == "cuda" else ()),
        *(Case(name, plain.changed(**change)) for name, change in more.items()),
    ]


def _at_once(config: TrainConfig) -> list[Case]:
    """All rows of a step in one pass, recomputed to take less: what a 4-bit base costs per pass is then paid once."""
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if config.gradient_accumulation_steps == 1 or rows > MOST_ROWS:
        return []
    merged = config.in_passes(1).changed(gradient_checkpointing="on")
    return [
        Case(f"{name}, checkpointing, {rows} rows at once", merged.changed(**method))
        for name, method in _METHODS.items()
    ]


def _frontier(options: BenchmarkConfig, config: TrainConfig, kind: Kind) -> list[Case]:
    return [
        Case(name + told, config.changed(**method, gradient_checkpointing=switch))
        for told, switch in _SWITCHES.items()
        for name, method in _METHODS.items()
    ]


def _rank(options: BenchmarkConfig, config: TrainConfig, kind: Kind) -> list[Case]:
    return [
        Case(f"r {rank}, {targets}", config.changed(r=rank, lora_alpha=2 * rank, target_modules=targets))
        for targets in options.names("targets")
        for rank in options.numbers("ranks")
    ]


def _inference(options: BenchmarkConfig, config: TrainConfig, kind: Kind) -> list[Case]:
    return [Case(name, config, name) for name in options.names("variants")]


def largest(fits: Callable[[int], bool], guess: int, most: int, grain: int) -> int:
    """The largest multiple of `grain` up to `most` that fits, within 3% of it; 0 where not even one does.

    What fits is taken to fit below as well.  From the guess the tries go up or down in steps that double, until the
    answer lies between two of them; it is then found by bisection.
    """
    low, high = 0, most // grain + 1
    at = min(max(1, guess // grain), high - 1)
    step, failed = max(1, at // _NEAR), False
    while high - low > (max(1, low // _FINE) if failed else 1):
        if fits(at * grain):
            low = at
        else:
            high, failed = at, True
        away = max(1, high - step) if failed else min(low + step, high - 1)
        at = (low + high) // 2 if low and failed else away
        step *= 2
    return low * grain
