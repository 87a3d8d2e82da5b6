"""What a result's table and the lines under it say: figures reckoned when they are shown, and how far to trust them."""

from __future__ import annotations

from typing import Any

from qlora_demo.benchmark_notes import notes
from qlora_demo.benchmark_tables import brief, table

ANSWERED: dict[str, Any] = {"fits": True, "prompt_tokens": 8, "batch": 1, "tpot_median_seconds": 0.5}


def answered(method: str = "", **processes: float) -> dict[str, Any]:
    """An inference result with a row a column, of 4 GB that are read in half a second; GB/s of each process."""
    rows = [
        {"case": name, "read_bytes": 4e9, "bandwidth_share": 0.9, "bandwidth_bytes_per_second": 1e9 * found} | ANSWERED
        for name, found in processes.items()
    ]
    return {"kind": "inference", "rows": rows, "method": method}


def cells(result: dict[str, Any], column: str, short: bool = False) -> list[str]:
    """One column of a result's table."""
    found = (brief if short else table)(result)
    return [row[found.head.index(column)] for row in found.rows]


def test_a_share_is_of_the_median_bandwidth_whatever_the_file_holds() -> None:
    result = answered(base=33.0, adapter=32.0, merged=60.0, again=33.0)
    assert cells(result, "of the bandwidth") == cells(result, "of the bandwidth", short=True) == ["24.2%"] * 4
    assert cells(answered() | {"rows": [{"case": "a"} | ANSWERED]}, "of the bandwidth") == ["–"]


def test_the_limit_its_spread_and_what_that_means_are_told_once() -> None:
    apart = notes(answered("Each column.", base=33.0, adapter=32.0, merged=60.0, again=33.0))
    assert apart.startswith(
        "Each column. The share of the bandwidth counts each weight once per token, over 33.0 GB/s,"
    )
    assert "(32.0 GB/s to 60.0 GB/s)" in apart
    assert apart.endswith("The processes are 85% apart, so the shares are rough.")
    assert "apart" not in notes(answered(base=33.0, adapter=32.0))


def test_what_a_file_of_before_says_of_the_share_is_not_repeated() -> None:
    before = (
        "Each column. The share of the bandwidth counts each, over the most that any reached; keys are not counted."
    )
    told = notes(answered(before, base=33.0))
    assert told.startswith("Each column. The share") and told.count("The share") == 1 and "any reached" not in told
