"""Figures for people: a unit, and no more digits than mean something."""

from __future__ import annotations

GIB = 1 << 30
MIB = 1 << 20


def memory(count: float) -> str:
    """Bytes for people."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    if count >= MIB:
        return f"{count / MIB:.0f} MiB" if count >= 10 * MIB else f"{count / MIB:.1f} MiB"
    return f"{count / 1024:.0f} KiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if round(seconds, 4) < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def counted(count: int, noun: str) -> str:
    """A count and what is counted, whose plural has an s."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def percent(share: float) -> str:
    """A share in 0..1 for people."""
    return f"{100 * share:.1f}%"
