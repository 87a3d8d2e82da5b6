"""What a person chooses of a benchmark, beside the training settings that it compares: defaults, ranges, meanings."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import ConfigError
from ..knobs import Knobs
from ..knobs import declare as _knob

BenchmarkKind = Literal["training", "frontier", "rank", "inference"]
_LIST = {"min_length": 1, "max_length": 200}


class BenchmarkConfig(Knobs):
    """One benchmark.  Lists are separated by commas."""

    kind: BenchmarkKind = _knob(
        "training",
        "Benchmark",
        "What is measured",
        "training: LoRA against QLoRA; frontier: the longest row and the largest batch that fit; rank: ranks and "
        "target layers; inference: latency by column, prompt and batch",
    )
    steps: int = _knob(
        5, "Training", "Measured steps", "Optimizer steps timed, after two warm-up steps", ge=2, le=10_000
    )
    ranks: str = _knob("8,64,256", "Rank", "Ranks", "Ranks to compare", **_LIST)
    targets: str = _knob("attention,mlp,all-linear", "Rank", "Targets", "Target layers to compare", **_LIST)
    gpu_memory: str = _knob(
        "24GB",
        "Frontier",
        "Memory budget",
        "Memory that training must fit in; on a GPU the allocator is limited to it, elsewhere the process's memory is "
        "compared with it",
        **_LIST,
    )
    run: str = _knob(
        "",
        "Inference",
        "Run",
        "The run whose columns are timed; empty: the training settings' model with a random adapter",
        min_length=0,
        max_length=400,
    )
    variants: str = _knob(
        "base,adapter,merged,merged-4bit",
        "Inference",
        "Columns",
        "As in compare: RECIPE[:original|:dequantized]",
        **_LIST,
    )
    prompt_tokens: str = _knob("32,512", "Inference", "Prompt lengths", "Tokens", **_LIST)
    batch_sizes: str = _knob("1,4", "Inference", "Batch sizes", "Rows answered together", **_LIST)
    new_tokens: int = _knob(32, "Inference", "New tokens", "Decoded per answer", ge=2, le=4096)
    repeats: int = _knob(5, "Inference", "Repeats", "Answers of each kind; medians are reported", ge=5, le=100)

    def model_post_init(self, context: Any, /) -> None:
        for name in ("ranks", "prompt_tokens", "batch_sizes"):
            self.numbers(name)

    def names(self, field: str) -> list[str]:
        """A field's list."""
        return [part.strip() for part in str(getattr(self, field)).split(",") if part.strip()]

    def numbers(self, field: str) -> list[int]:
        """A field's list of whole numbers >= 1; raises `ConfigError`."""
        found = self.names(field)
        if not found or not all(part.isdecimal() and 0 < int(part) < 1 << 20 for part in found):
            raise ConfigError(
                field, f"{getattr(self, field)!r} is not allowed; give whole numbers >= 1, separated by commas"
            )
        return [int(part) for part in found]


FULL = {
    "ranks": "8,16,32,64,128,256",
    "prompt_tokens": "32,128,512,2048,8192",
    "batch_sizes": "1,2,4,8,16",
    "new_tokens": 128,
    "steps": 10,
}
"""What the whole range takes; the defaults are a quick look at it."""
