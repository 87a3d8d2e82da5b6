"""What a benchmark measures, as plain data: one case per process, named as its row of the table is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .benchmark_config import BenchmarkConfig, BenchmarkKind
from .config import TrainConfig
from .memory_plan import Kind

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
    "training": "Each case is a process of its own that trains rows of random tokens, each as long as allowed, through "
    f"the app's own trainer: {WARM_UP_STEPS} steps to warm up, then the measured ones, timed on the synchronised "
    "device. Memory is the peak of each phase in the last step of the warm-up. Tokens/s are a step's mean tokens over "
    "the median step; the 95% step is told of 20 steps and more, the longest of any.",
    "frontier": "Real training steps on rows of random tokens, two for each try: a try fits where it ends within the "
    "budget. The length is sought with one row, the batch with rows as long as the settings say, both from the plan's "
    "guess in steps that double, then by bisection, to within 3%; "
    "≥: more may fit; the search ends at the model's longest context and at 1,024 rows, and so do the plan's figures.",
    "rank": "As the training benchmark, by rank and target layers. Where rows are to be answered, the settings' own "
    "data is trained on instead, for their number of steps, and the answers to held-out rows are scored.",
    "inference": "Each column is a process of its own. Prompts of random tokens are answered greedily through the loop "
    "that the chat uses, and through the library's own generate() in turn with it; medians over all repeats, after one "
    "that warms up. A token's median and 95% are of single passes of ours. Speed over generate() is of whole answers: "
    "what one takes after its first token, the library's over ours in the same repeat; the median of those ratios.",
}
"""How the figures come about, for whoever reads them."""


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
    return _frontier(options, config, kind) + [Case(name, plain.changed(**change)) for name, change in more.items()]


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
