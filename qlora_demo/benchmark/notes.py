"""What stands under a benchmark's table: how it was measured, what its columns mean, how far it can be trusted."""

from __future__ import annotations

import re

from ..errors import ConfigError
from ..units import counted
from .config import BenchmarkConfig
from .reckoned import Result, bandwidth
from .tables import scored, shown

_PLANNED = "Planned is the memory plan's figure when this was measured, where the search began."
_MEANT = {
    "training": {
        "device_peak_bytes": "Needed on the device is the peak and, on a GPU, what the driver and any other process on "
        "the card take in addition, which cannot be told apart.",
        "planned_bytes": "Planned is the current memory plan's figure for the model's shape and the settings; – means "
        "that the file does not say enough for one.",
        "flops_share": "FLOP utilisation is the rate of the arithmetic that the tokens need (4 operations per frozen "
        "weight, 6 per adapter weight, and attention's; recomputation is not counted) divided by that of multiplying "
        "two large 16-bit matrices in the same process.",
    },
    "frontier": {"planned_longest_row": _PLANNED},
    "inference": {
        "peak_bytes": "Peak is our loop's, weights included; where no weight precision is given, the larger of "
        "it and generate()'s."
    },
    "rank": {},
}
"""What a column's label does not say by itself."""
_INTERVAL = "The 95% interval of an exact match is the Wilson interval for that number of answers."
_PRODUCTS = "Frozen layers multiplied in fp32, in which a processor without matrix units for bf16 is faster."
_WIDE = 0.1
"""Processes whose bandwidths are further apart than this give shares that are no more than a guess."""
_SUPERSEDED = re.compile(r" ?The share of the bandwidth counts .*?not counted\.")
"""What inference results of before say of the share, which is reckoned otherwise now."""


def notes(result: Result, *, short: bool = False) -> str:
    """The method that a result came about by, and what its table or the short one shows; a paragraph."""
    method = _SUPERSEDED.sub("", " ".join(str(result.get("method", "")).split()))
    meant = (told for name, told in _MEANT[result["kind"]].items() if name in shown(result, short=short))
    products = _PRODUCTS * any(row.get("fp32_products") for row in result["rows"])
    told = (method, *meant, _INTERVAL * scored(result), products, _of_the_bandwidth(result), _of_the_drift(result))
    return " ".join(filter(None, told))


def standing(result: Result) -> str:
    """A benchmark's state, and how far one came that did not come to its end."""
    state = str(result.get("state", ""))
    if state not in ("stopped", "failed"):
        return state
    word, done, planned = "row" if result["kind"] == "inference" else "case", len(result["rows"]), _planned_rows(result)
    return f"{state} after {f'{done} of ' if planned else ''}{counted(planned or done, word)}"


def _planned_rows(result: Result) -> int:
    """The rows that a finished benchmark has; 0 where that is not told."""
    count = int(result.get("cases", 0))
    if result["kind"] != "inference":
        return count
    try:
        options = BenchmarkConfig(**result.get("options", {}))
    except ConfigError:
        return 0
    return count * len(options.numbers("prompt_tokens")) * len(options.numbers("batch_sizes"))


def _of_the_bandwidth(result: Result) -> str:
    found = bandwidth(result["rows"]) if result["kind"] == "inference" else None
    if found is None:
        return ""
    told = (
        "The share of bandwidth counts each weight once per token, relative to "
        f"{_rate(found.median)}, the median of the read bandwidths measured in the columns' processes "
        f"({_rate(found.least)} to {_rate(found.most)}); the KV cache is not counted."
    )
    apart = f" The processes differ by {found.spread:.0%}, so the shares are rough."
    return told + apart * (found.spread > _WIDE)


def _of_the_drift(result: Result) -> str:
    """By how much the machine alone changed a step's time while the cases were measured."""
    name = "step_median_seconds"
    again = result.get("again", {})
    before = next((row.get(name) for row in result["rows"] if row["case"] == again.get("case")), None)
    if not before or not again.get(name):
        return ""
    change = again[name] / before - 1
    return (
        f"{again['case']} was measured once more at the end: its median step took {abs(change):.1%} "
        f"{'more' if change > 0 else 'less'} time; smaller differences are noise."
    )


def _rate(bytes_per_second: float) -> str:
    found = bytes_per_second / 1e9
    return f"{found:,.0f} GB/s" if found >= 100 else f"{found:.1f} GB/s"
