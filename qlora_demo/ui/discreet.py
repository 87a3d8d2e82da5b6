"""What visitors are shown tells files of the home by their place in it, not where on this machine it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from ..errors import DemoError


class Discreet:
    """Of one home."""

    def __init__(self, home: Path) -> None:
        roots = {form for path in (home, home.resolve()) for form in (str(path), escape(str(path)))}
        longest_first = sorted(roots, key=len, reverse=True)
        self._home = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest_first))})(?:/|(?!\w|[.-]\w))")

    def drawn(self, values: Any, outputs: Sequence[Any]) -> Any:
        """What a handler gives for its outputs; text comes as such or in a `gr.update`, for a component carries a file,
        and a state is the server's own."""
        if len(outputs) > 1 and isinstance(values, list | tuple):
            return [self.drawn(value, [part]) for value, part in zip(values, outputs, strict=True)]
        return values if outputs and isinstance(outputs[0], gr.State) else self._without(values)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Those that leave the block."""
        try:
            yield
        except DemoError as exc:
            exc.args = (self._without(str(exc)),)
            raise

    def _without(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._home.sub(lambda found: "" if found[0].endswith("/") else "the home", value)
        if isinstance(value, dict):
            return {name: self._without(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self._without, value))
        return value.map(self._without) if isinstance(value, pd.DataFrame) else value
