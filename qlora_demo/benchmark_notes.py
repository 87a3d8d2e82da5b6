"""What stands under a benchmark's table: how it was measured, what its columns mean, how far it can be trusted."""

from __future__ import annotations

import re

from .benchmark_reckoned import Result, bandwidth

_WIDE = 0.1
"""Processes whose bandwidths are further apart than this give shares that are no more than a guess."""
_SUPERSEDED = re.compile(r" ?The share of the bandwidth counts .*?not counted\.")
"""What inference results of before say of the share, which is reckoned otherwise now."""


def notes(result: Result) -> str:
    """The method that a result came about by, and what is reckoned when it is shown; a paragraph."""
    method = " ".join(str(result.get("method", "")).split())
    return " ".join(filter(None, (_SUPERSEDED.sub("", method), _of_the_bandwidth(result))))


def _of_the_bandwidth(result: Result) -> str:
    found = bandwidth(result["rows"]) if result["kind"] == "inference" else None
    if found is None:
        return ""
    told = (
        "The share of the bandwidth counts each weight once per token, over "
        f"{_rate(found.median)}, the median of what reading memory reached in each column's process "
        f"({_rate(found.least)} to {_rate(found.most)}); keys and values are not counted."
    )
    apart = f" The processes are {found.spread:.0%} apart, so the shares are rough."
    return told + apart * (found.spread > _WIDE)


def _rate(bytes_per_second: float) -> str:
    found = bytes_per_second / 1e9
    return f"{found:,.0f} GB/s" if found >= 100 else f"{found:.1f} GB/s"
