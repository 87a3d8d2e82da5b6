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
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from qlora_demo.benchmark_cases import Case, cases
from qlora_demo.benchmark_config import BenchmarkConfig
from qlora_demo.benchmarking import Start, measure_case, start_case, write_result_file
from qlora_demo.catalog import SHAPES as SHAPES_BY_NAME
from qlora_demo.config import TrainConfig
from qlora_demo.gpu import device_info
from qlora_demo.memory_plan import Kind, plan
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
    document: dict[str, Any] = {}
    for document in documents():
        print(json.dumps(document["rows"][-1]), file=sys.stderr)
        if args.out:
            write_result_file(args.out, document)
    print(json.dumps(document, indent=2))


def documents(start: Start = start_case) -> Iterator[dict[str, Any]]:
    """The result after each configuration that was measured."""
    kind = device_info().kind
    document: dict[str, Any] = {"kind": kind, "unit": "bytes", "method": __doc__.split("Method: ")[1], "rows": []}
    for shape, length in product(SHAPES[kind], LENGTHS[kind]):
        for name, config in configs(shape, length, kind).items():
            machine, row = measured(Case(name, config), start)
            document |= {"machine": machine, "kernels": row["kernels"]}
            document["rows"].append(told(shape, length, row))
            yield document


def configs(shape: str, length: int, kind: Kind) -> dict[str, TrainConfig]:
    """The article's settings on a shape, one row at a time, by case."""
    config = ARTICLE.changed(
        model=f"shape:{shape}", max_length=length, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1
    )
    return {case.name: case.config for case in cases(BenchmarkConfig(), config, kind)[:4]}


def planned_bytes(document: dict[str, Any], row: dict[str, Any]) -> int:
    """What the plan, as it is now, says of a row that was measured."""
    kind = document["kind"]
    config = configs(row["shape"], row["tokens"], kind)[row["case"]]
    recomputes = config.gradient_checkpointing == "on"
    shape, kernels = SHAPES_BY_NAME[row["shape"]], document["kernels"]
    return plan(shape, config, kind, checkpointing=recomputes, kernels=kernels).total_bytes


def measured(case: Case, start: Start) -> tuple[dict[str, str], dict[str, Any]]:
    """The machine and the row of one case."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(measure_case(Path(folder), BenchmarkConfig(steps=2), case, start=start))
    machine = next(one["machine"] for one in found if "machine" in one)
    return machine, {"case": case.name} | next(one["row"] for one in found if "row" in one)


def told(shape: str, length: int, row: dict[str, Any]) -> dict[str, Any]:
    """One configuration and what it took; the plan is reckoned when the table is written."""
    return {"shape": shape, "tokens": length, "case": row["case"], "measured_bytes": row["device_peak_bytes"]}


if __name__ == "__main__":
    main()
