"""What is reckoned from a benchmark's rows whenever they are shown, so that an old file's follow what is known now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

from pydantic import TypeAdapter

from ..catalog import shape_named
from ..config import TrainConfig
from ..errors import RequestError
from ..memory import ModelShape
from ..plan.memory_plan import Kernels, Kind, On, plan
from .cases import cases
from .config import BenchmarkConfig

Result = Mapping[str, Any]
Row = Mapping[str, Any]
_SHAPE = TypeAdapter(ModelShape)


@dataclass(frozen=True)
class Bandwidth:
    """Of reading memory, by the processes that measured it, one a column: bytes per second."""

    median: float
    least: float
    most: float

    @property
    def spread(self) -> float:
        """How far the processes are apart, over their median."""
        return (self.most - self.least) / self.median


def bandwidth(rows: Iterable[Row]) -> Bandwidth | None:
    """The bandwidth of a result's processes; None where none measured it."""
    name = "bandwidth_bytes_per_second"
    found = {row["case"]: row[name] for row in rows if row.get(name, 0) > 0}.values()
    return Bandwidth(median(found), min(found), max(found)) if found else None


def reckoned(result: Result) -> list[Row]:
    """A result's rows with what is reckoned from them, in place of what a file may hold of it."""
    if result["kind"] == "inference":
        limit = bandwidth(result["rows"])
        return [{**row, "bandwidth_share": _share(row, limit)} for row in result["rows"]]
    if result["kind"] == "training":
        return [{**row, "planned_bytes": planned_bytes(result, row)} for row in result["rows"]]
    return list(result["rows"])


def planned_bytes(result: Result, row: Row) -> int | None:
    """What the memory plan, as it is now, says of a training row; None where its settings, shape or kernels are not
    told."""
    machine, recomputes = result.get("machine"), row.get("checkpointing")
    kind: Kind = "cuda" if machine and "cuda" in machine else "cpu"
    kernels: Any = "torch" if kind == "cpu" else row.get("kernels")
    if not machine or recomputes is None or kernels not in get_args(Kernels):
        return None
    try:
        config = _config(result, row, kind)
        on: On = "cuda-fp16" if row.get("fp16") else kind
        return plan(_shape(row, config), config, on, checkpointing=recomputes, kernels=kernels).total_bytes
    except (RequestError, LookupError, ValueError):
        return None


def _config(result: Result, row: Row, kind: Kind) -> TrainConfig:
    """The settings that a row's case was trained with."""
    planned = cases(BenchmarkConfig(kind="training"), TrainConfig(**result["config"]), kind)
    return {case.name: case.config for case in planned}[row["case"]]


def _shape(row: Row, config: TrainConfig) -> ModelShape:
    return _SHAPE.validate_python(row["shape"]) if "shape" in row else shape_named(config.model)[1]


def _share(row: Row, limit: Bandwidth | None) -> float | None:
    """Of the median process's bandwidth: one that met an idle machine would else be the measure of all."""
    read, seconds = row.get("read_bytes"), row.get("tpot_median_seconds")
    return read / seconds / limit.median if read and seconds and limit else None
