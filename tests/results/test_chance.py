"""What chance may explain, in numbers and in words."""

from __future__ import annotations

import math

import pytest

from qlora_demo.results.chance import LEVEL, interval, p_value, sign_test


@pytest.mark.parametrize(("first", "second"), [(0, 6), (3, 9), (17, 17), (25, 42), (180, 240)])
def test_the_sign_test_is_the_exact_binomial_one(first: int, second: int) -> None:
    total, least = first + second, min(first, second)
    exact = min(1.0, 2 * sum(math.comb(total, count) for count in range(least + 1)) / 2**total)
    assert sign_test(first, second) == pytest.approx(exact, rel=1e-9)


def test_thousands_of_rows_are_no_overflow() -> None:
    assert sign_test(0, 5000) == 0.0 and sign_test(2500, 2500) == 1.0


def test_a_p_is_never_told_as_none_nor_as_the_level_it_is_below() -> None:
    assert p_value(sign_test(0, 5000)) == "p < 0.001"
    assert sign_test(25, 42) < LEVEL and p_value(sign_test(25, 42)) == "p = 0.0498"
    assert p_value(1.0) == "p = 1"


def test_an_interval_says_how_little_few_rows_say() -> None:
    assert interval(1.0, 6) == "61.0% to 100.0%"
