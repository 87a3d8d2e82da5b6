"""The memory plan against measured peaks: three shapes, both methods, two lengths, both checkpointings; or, wider,
settings that its constants were not fitted to.

    python -m benchmarks.plan_truth [--wider] [--out FILE]

Method: each configuration trains full rows of random tokens through the app's trainer in a process of its own (see
`qlora_demo/ml/measure_training.py`); the measured figure is what the device must have free for it: on a GPU the most
that was allocated and what the driver takes beside it, on a CPU the process's highest resident memory, which differs by
some per cent from one process to the next.  The plan is computed from the shape and the settings alone.
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

from qlora_demo.benchmark.cases import QLORA, Case, cases
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.runner import Start, measure_case, start_case, write_result_file
from qlora_demo.catalog import SHAPES as SHAPES_BY_NAME
from qlora_demo.config import TrainConfig
from qlora_demo.gpu import device_info
from qlora_demo.plan.memory_plan import Kind, plan
from qlora_demo.presets import ARTICLE

ROWS = 1
LENGTHS: dict[Kind, tuple[int, ...]] = {"cpu": (128, 512), "cuda": (512, 2048)}
SHAPES: dict[Kind, tuple[str, ...]] = {
    "cpu": ("smollm2-135m", "smollm2-360m", "qwen3-0.6b"),
    "cuda": ("qwen3-0.6b", "smollm2-1.7b", "llama-2-7b"),
}
WIDER_TOKENS = 256
WIDER: tuple[dict[str, Any], ...] = (
    {"r": 8, "target_modules": "all-linear"},
    {"r": 64, "target_modules": "all-linear"},
    {"r": 256, "target_modules": "all-linear"},
    {"r": 256, "target_modules": "all-linear", "gradient_accumulation_steps": 4},
    {"r": 256, "target_modules": "all-linear", "gradient_checkpointing": "on"},
    {"r": 256, "target_modules": "all-linear", "method": "lora"},
    {"r": 64, "target_modules": "mlp"},
    {"r": 64, "target_modules": "all-linear", "use_dora": True},
    {"r": 64, "target_modules": "all-linear", "method": "lora-8bit"},
    {"lora_dropout": 0.0},
    {"per_device_train_batch_size": 4},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"max_length": 1024, "target_modules": "all-linear"},
    {"max_length": 1024, "gradient_checkpointing": "on"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wider", action="store_true", help="other ranks, targets, batches and methods, on one shape")
    args = parser.parse_args()
    document: dict[str, Any] = {}
    for document in documents(wider=args.wider):
        print(json.dumps(document["rows"][-1]), file=sys.stderr)
        if args.out:
            write_result_file(args.out, document)
    print(json.dumps(document, indent=2))


def documents(start: Start = start_case, *, wider: bool = False) -> Iterator[dict[str, Any]]:
    """The result after each configuration that was measured."""
    kind = device_info().kind
    document: dict[str, Any] = {"kind": kind, "unit": "bytes", "method": __doc__.split("Method: ")[1], "rows": []}
    for case in wider_cases(kind) if wider else fitted_cases(kind):
        machine, row = measured(case, start)
        document |= {"machine": machine, "kernels": row["kernels"]}
        document["rows"].append(told(case, row))
        yield document


def fitted_cases(kind: Kind) -> list[Case]:
    """What the plan's constants were fitted to."""
    settings = product(SHAPES[kind], LENGTHS[kind])
    return [Case(*one) for shape, length in settings for one in configs(shape, length, kind).items()]


def wider_cases(kind: Kind) -> list[Case]:
    """What they were not fitted to."""
    base = configs(SHAPES[kind][0], WIDER_TOKENS, kind)[QLORA]
    return [Case(", ".join(f"{name} {value}" for name, value in one.items()), base.changed(**one)) for one in WIDER]


def configs(shape: str, length: int, kind: Kind) -> dict[str, TrainConfig]:
    """The article's settings on a shape, one row at a time, by case."""
    config = ARTICLE.changed(
        model=f"shape:{shape}", max_length=length, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1
    )
    return {case.name: case.config for case in cases(BenchmarkConfig(), config, kind)[:4]}


def planned_bytes(document: dict[str, Any], row: dict[str, Any]) -> int:
    """What the plan, as it is now, says of a row that was measured."""
    kind = document["kind"]
    made = {(case.name, *_size(case)): case.config for case in (*fitted_cases(kind), *wider_cases(kind))}
    config = made[row["case"], row["shape"], row["tokens"]]
    recomputes = config.gradient_checkpointing == "on"
    shape, kernels = SHAPES_BY_NAME[row["shape"]], document["kernels"]
    return plan(shape, config, kind, checkpointing=recomputes, kernels=kernels).total_bytes


def measured(case: Case, start: Start) -> tuple[dict[str, str], dict[str, Any]]:
    """The machine and the row of one case."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(measure_case(Path(folder), BenchmarkConfig(steps=2), case, start=start))
    machine = next(one["machine"] for one in found if "machine" in one)
    return machine, {"case": case.name} | next(one["row"] for one in found if "row" in one)


def told(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """One configuration and what it took; the plan is reckoned when the table is written."""
    shape, tokens = _size(case)
    return {"shape": shape, "tokens": tokens, "case": case.name, "measured_bytes": row["device_peak_bytes"]}


def _size(case: Case) -> tuple[str, int]:
    return case.config.model.removeprefix("shape:"), case.config.max_length


if __name__ == "__main__":
    main()
