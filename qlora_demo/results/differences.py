"""Where two answers differ: word by word for people, token by token for the record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from itertools import groupby, zip_longest

_MOST_WORDS = 4000
"""Of each answer; comparing takes time with the product of both.  What is longer counts as different from there on."""


@dataclass(frozen=True)
class Piece:
    """A run of text that the other answer has too, or has not."""

    text: str
    same: bool


def words(left: str, right: str) -> tuple[list[Piece], list[Piece]]:
    """Both answers in pieces; the texts of each side's pieces, joined, are that side's answer."""
    ours, theirs = _split(left), _split(right)
    kept = SequenceMatcher(None, ours[:_MOST_WORDS], theirs[:_MOST_WORDS], autojunk=False).get_matching_blocks()
    return (
        _pieces(ours, {at for block in kept for at in range(block.a, block.a + block.size)}),
        _pieces(theirs, {at for block in kept for at in range(block.b, block.b + block.size)}),
    )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Position of the first token that differs, or is in one answer only; None where all are the same."""
    pairs = enumerate(zip_longest(left, right))
    return next((at for at, (ours, theirs) in pairs if ours != theirs), None)


def html(pieces: Iterable[Piece], kind: str) -> str:
    """Escaped text; what the other answer has not is marked with a class."""
    return "".join(
        escape(piece.text) if piece.same else f'<mark class="{escape(kind)}">{escape(piece.text)}</mark>'
        for piece in pieces
    )


def _split(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _pieces(parts: Sequence[str], kept: set[int]) -> list[Piece]:
    marked = ((part, at in kept) for at, part in enumerate(parts))
    return [Piece("".join(part for part, _ in group), same) for same, group in groupby(marked, key=lambda one: one[1])]
