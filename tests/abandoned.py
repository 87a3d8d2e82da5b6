"""A benchmark whose process is gone."""

from __future__ import annotations

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.runner import Benchmarks
from qlora_demo.config import TrainConfig


def abandoned(benchmarks: Benchmarks, options: BenchmarkConfig, config: TrainConfig) -> str:
    """Its id; nothing was measured."""
    with benchmarks.new(options, config) as (name, _):
        return name
