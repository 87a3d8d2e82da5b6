"""What is reckoned from a benchmark's rows whenever they are shown, so that an old file's follow what is known now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Result = Mapping[str, Any]
Row = Mapping[str, Any]


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
    return list(result["rows"])


def _share(row: Row, limit: Bandwidth | None) -> float | None:
    """Of the median process's bandwidth: one that met an idle machine would else be the measure of all."""
    read, seconds = row.get("read_bytes"), row.get("tpot_median_seconds")
    return read / seconds / limit.median if read and seconds and limit else None
