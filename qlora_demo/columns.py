"""A column as text and back: ``RECIPE[:original|:dequantized][@SOURCE]``.

``adapter``, ``merged:original``, ``adapter@20260101-120000-qlora-1f2e``, ``merged-4bit@./some/adapter``: without a
source, the run that the request is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from .catalog import BUNDLED_MODELS, VARIANTS
from .errors import ConfigError
from .records import Column, MergeBase

MOST = 4
"""Columns that one request may name."""
_SHOWN = 200
"""Characters of what was asked for that a message repeats."""
_MERGING = ("merged", "merged-4bit")


def parse(text: str, run: str) -> Column:
    """One column; raises `ConfigError` that names what may be written."""
    recipe, _, source = text.strip().partition("@")
    recipe, _, onto = recipe.partition(":")
    if recipe not in VARIANTS:
        raise ConfigError("variants", f"{text[:_SHOWN]!r} is not known; choose from {', '.join(VARIANTS)}")
    bases = get_args(MergeBase)
    if onto and (onto not in bases or recipe not in _MERGING):
        raise ConfigError("variants", f"{text[:_SHOWN]!r} is not known; only merged models have :{' or :'.join(bases)}")
    return Column(text.strip(), recipe, source or run, onto or None)  # type: ignore[arg-type]


def parse_all(texts: Sequence[str], run: str) -> tuple[Column, ...]:
    """One to four different columns."""
    columns = tuple(parse(text, run) for text in texts)
    if not 1 <= len(columns) <= MOST:
        raise ConfigError("variants", f"{len(columns)} columns are not allowed; name 1 to {MOST}")
    if len({column.name for column in columns}) < len(columns):
        raise ConfigError("variants", f"{', '.join(texts)[:_SHOWN]} names a column twice; name each once")
    return columns


def is_bundled(column: Column) -> bool:
    """Whether a column is a bundled model as it is: its source names the model, no run or adapter."""
    return column.recipe == "base" and column.source in BUNDLED_MODELS


def title(column: Column, run: str = "") -> str:
    """What a column is called; its source is named where it is not the run that is talked about."""
    onto = f" onto {column.onto}" if column.onto else ""
    other = f" · {column.source}" if run and column.source != run else ""
    return VARIANTS[column.recipe] + onto + other
