"""One case of a benchmark, as its own process, so that no case finds memory that another left behind.

    python -m qlora_demo.ml.measure < CASE.json

stdin: ``{"options": BenchmarkConfig, "config": TrainConfig, "name": ..., "column": ...}``.  stdout: one JSON object a
line: ``{"machine": {...}}`` first, then ``{"row": {...}}`` for each row, or ``{"refused": MESSAGE}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from ..benchmark.cases import Case
from ..benchmark.config import BenchmarkConfig, BenchmarkKind
from ..config import TrainConfig
from ..errors import NoRoom, RequestError, one_line
from ..settings import Settings
from ..system.heap import collect_as_usual
from .device import ran_out
from .machine import versions
from .measure_inference import measure_inference
from .measure_training import measure_frontier, measure_training
from .usable import require_usable_gpu

Measure = Callable[[Case, BenchmarkConfig, Settings], Iterator[dict[str, Any]]]
_MEASURES: dict[BenchmarkKind, Measure] = {
    "training": measure_training,
    "frontier": measure_frontier,
    "rank": measure_training,
    "inference": measure_inference,
}


def main() -> None:
    """Measure the case on stdin; what libraries print goes to stderr."""
    collect_as_usual()
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    options, config = BenchmarkConfig(**asked["options"]), TrainConfig(**asked["config"])
    case = Case(asked["name"], config, asked["column"])
    _tell(told, {"machine": versions()})
    try:
        require_usable_gpu()
        for row in _MEASURES[options.kind](case, options, Settings.from_environment()):
            _tell(told, {"row": {"fits": True} | row})
    except NoRoom as exc:
        _tell(told, {"row": {"fits": False, "error": str(exc)}})
    except RequestError as exc:
        _tell(told, {"refused": str(exc)})
    except (RuntimeError, MemoryError) as exc:
        if not ran_out(exc):
            raise
        _tell(told, {"row": {"fits": False, "error": f"out of memory ({one_line(exc)})"}})


def _tell(told: TextIO, what: dict[str, Any]) -> None:
    told.write(json.dumps(what) + "\n")
    told.flush()


if __name__ == "__main__":
    main()
