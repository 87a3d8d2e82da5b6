"""The memory plan against measured peaks: three shapes, both methods, two lengths, both checkpointings.

    python -m benchmarks.plan_truth [--out FILE]

Method: each configuration trains full rows of random tokens through the app's trainer in a process of its own (see
`qlora_demo/ml/measure_training.py`); the measured figure is the most that it took of the device, on a CPU the process's
highest resident memory, which differs by some per cent from one process to the next.  The plan is
reckoned from the shape and the settings alone.
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
from qlora_demo.presets import ARTICLE

ROWS = 1
LENGTHS = (128, 512)
SHAPES = ("smollm2-135m", "smollm2-360m", "qwen3-0.6b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machine: dict[str, str] = {}
    rows = []
    for shape, length in product(SHAPES, LENGTHS):
        for case in cases(BenchmarkConfig(), config_of(shape, length), device_info().kind)[:4]:
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
