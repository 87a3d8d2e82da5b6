"""The memory plan against measured peaks: three shapes, both methods, two lengths, both checkpointings.

    python -m benchmarks.plan_truth [--out FILE]

Method: each configuration trains full rows of random tokens through the app's trainer in a process of its own (see
`qlora_demo/ml/measure_training.py`); the measured figure is what the device must have free for it: on a GPU the most
that was allocated and what the driver takes beside it, on a CPU the process's highest resident memory, which differs by
some per cent from one process to the next.  The plan is reckoned from the shape and the settings alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from qlora_demo.benchmark_cases import Case, cases
from qlora_demo.benchmark_config import BenchmarkConfig
from qlora_demo.benchmarking import measure_case, write_result_file
from qlora_demo.config import TrainConfig
from qlora_demo.gpu import device_info
from qlora_demo.memory_plan import Kind
from qlora_demo.presets import ARTICLE

ROWS = 1
LENGTHS: dict[Kind, tuple[int, ...]] = {"cpu": (128, 512), "cuda": (512, 2048)}
SHAPES: dict[Kind, tuple[str, ...]] = {
    "cpu": ("smollm2-135m", "smollm2-360m", "qwen3-0.6b"),
    "cuda": ("qwen3-0.6b", "smollm2-1.7b", "llama-2-7b"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machine: dict[str, str] = {}
    rows = []
    kind = device_info().kind
    for shape, length in product(SHAPES[kind], LENGTHS[kind]):
        for case in cases(BenchmarkConfig(), config_of(shape, length), kind)[:4]:
            machine, row = measured(case)
            rows.append(told(shape, length, row))
            print(json.dumps(rows[-1]), file=sys.stderr)
    document = {
        "machine": machine,
        "batch": ROWS,
        "unit": "bytes",
        "method": __doc__.split("Method: ")[1],
        "rows": rows,
    }
    print(json.dumps(document, indent=2))
    if args.out:
        write_result_file(args.out, document)


def config_of(shape: str, length: int) -> TrainConfig:
    """The article's settings on a smaller shape."""
    return ARTICLE.changed(
        model=f"shape:{shape}", max_length=length, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1
    )


def measured(case: Case) -> tuple[dict[str, str], dict[str, Any]]:
    """The machine and the row of one case."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(measure_case(Path(folder), BenchmarkConfig(steps=2), case))
    machine = next(one["machine"] for one in found if "machine" in one)
    return machine, {"case": case.name} | next(one["row"] for one in found if "row" in one)


def told(shape: str, length: int, row: dict[str, Any]) -> dict[str, Any]:
    """One configuration: planned, measured, and the first over the second."""
    planned, taken = row["planned_bytes"], row["device_peak_bytes"]
    return {
        "shape": shape,
        "tokens": length,
        "case": row["case"],
        "planned_bytes": planned,
        "measured_bytes": taken,
        "planned_over_measured": planned / taken,
    }


if __name__ == "__main__":
    main()
