"""Pages are closed when their test ends: a server that nobody asks anything still takes its share of a core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Page(Protocol):
    """As `gradio.Blocks`, which takes seconds to import."""

    def close(self, verbose: bool) -> None: ...


OPENED: list[Page] = []
"""Those that answer."""


def closing() -> Iterator[None]:
    """Close what is opened meanwhile."""
    before = len(OPENED)
    yield
    while len(OPENED) > before:
        OPENED.pop().close(verbose=False)
