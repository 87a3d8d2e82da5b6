"""How much of a counted share may be chance."""

from __future__ import annotations

import math
from statistics import NormalDist

from ..units import percent

LEVEL = 0.05
"""Below it, two are told apart."""


def interval(share: float, count: int) -> str:
    """The 95% interval that so many leave a share in, in words."""
    low, high = wilson(round(share * count), count)
    return f"{percent(low)} to {percent(high)}"


def wilson(wins: int, total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share."""
    if not total:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.975)
    share, scale = wins / total, 1 + z * z / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def sign_test(first: int, second: int) -> float:
    """The chance of a split at least this uneven if both were as good: two-sided exact binomial p."""
    total, least = first + second, min(first, second)
    tail = math.fsum(math.exp(_log_choose(total, count) - total * math.log(2)) for count in range(least + 1))
    return min(1.0, 2 * tail)


def p_value(chance: float) -> str:
    """A test's p in words: never rounded to 0, nor to the other side of `LEVEL`."""
    if chance < 0.001:
        return "p < 0.001"
    return f"p = {chance:.2g}" if f"{chance:.2g}" != f"{LEVEL:.2g}" else f"p = {chance:.4f}"


def _log_choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
