"""A column as text and back."""

from __future__ import annotations

import pytest

from qlora_demo.columns import parse, parse_all, title
from qlora_demo.errors import ConfigError
from qlora_demo.records import Column


@pytest.mark.parametrize(
    ("text", "column", "name"),
    [
        ("base", Column("base", "base", "R"), "Base"),
        ("merged:original", Column("merged:original", "merged", "R", "original"), "Merged onto original"),
        ("adapter@./other", Column("adapter@./other", "adapter", "./other"), "Base + adapter · ./other"),
        (
            "merged-4bit:dequantized@a/b",
            Column("merged-4bit:dequantized@a/b", "merged-4bit", "a/b", "dequantized"),
            "Merged, 4-bit again onto dequantized · a/b",
        ),
    ],
)
def test_what_may_be_written(text: str, column: Column, name: str) -> None:
    assert parse(text, "R") == column
    assert title(column, "R") == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known; choose from base, adapter, merged, merged-4bit"),
        ("Base", "'Base' is not known"),
        ("base:original", "only merged models have :original or :dequantized"),
        ("merged:nf4", "only merged models have"),
    ],
)
def test_what_may_not(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text, "R")


def test_one_to_four_different_columns() -> None:
    assert len(parse_all(["base", "adapter", "adapter@x", "merged"], "R")) == 4
    with pytest.raises(ConfigError, match="0 columns are not allowed; name 1 to 4"):
        parse_all([], "R")
    with pytest.raises(ConfigError, match="5 columns are not allowed"):
        parse_all(["base", "adapter", "merged", "merged:original", "merged-4bit"], "R")
    with pytest.raises(ConfigError, match="base, base names a column twice"):
        parse_all(["base", "base"], "R")
