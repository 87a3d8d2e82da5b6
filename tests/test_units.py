"""Figures have the unit that suits them, and no digits that mean nothing."""

from __future__ import annotations

import pytest

from qlora_demo.errors import one_line
from qlora_demo.records import percentile_95
from qlora_demo.units import GIB, MIB, counted, duration, memory, percent


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 ms"),
        (0.0045, "4.5 ms"),
        (0.0123, "12 ms"),
        (0.5, "500 ms"),
        (1, "1.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (119.6, "2 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 KiB"),
        (MIB, "1.0 MiB"),
        (300 * MIB, "300 MiB"),
        (GIB, "1.0 GiB"),
        (140 * GIB, "140.0 GiB"),
    ],
)
def test_memory_has_the_unit_that_suits_it(count: float, words: str) -> None:
    assert memory(count) == words


def test_what_a_library_says_is_one_line_that_ends() -> None:
    assert one_line(ValueError("no\n  such\tfile")) == "no such file"
    assert (len(one_line("word " * 100)), one_line("word", 2)) == (200, "wo")


@pytest.mark.parametrize(("count", "words"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_one_of_a_kind_is_no_plural(count: int, words: str) -> None:
    assert counted(count, "row") == words


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (19, 19), (20, 19), (40, 38), (41, 39), (100, 95), (160, 152)])
def test_a_95th_percentile_is_the_value_of_the_nearest_rank(count: int, rank: int) -> None:
    assert percentile_95(range(count, 0, -1)) == rank


def test_a_share_is_a_percentage_with_one_digit() -> None:
    assert (percent(0), percent(0.1234), percent(1)) == ("0.0%", "12.3%", "100.0%")
