"""A step may differ from the eager pass by what rounding does to the model, and by no more."""

from __future__ import annotations

import pytest
import torch

from qlora_demo.ml.agreement import difference, distance, tolerance


def test_a_near_tie_may_turn_and_a_clear_choice_may_not() -> None:
    eager = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    eager[:, 7], eager[:, 9] = 5.0, 5.0 - 0.03
    turned = eager.clone()
    turned[:, 9] = 5.01
    assert difference(eager, turned, 0.05) == ""
    eager[:, 9] = turned[:, 9] - 0.5
    assert "most likely token" in difference(eager, turned, 0.05)


def test_how_far_a_step_may_be_is_measured_by_two_eager_passes() -> None:
    eager = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    assert distance(eager, eager + 0.04 * noise) == pytest.approx(0.04, rel=0.1)
    assert distance(7 * eager, 7 * eager + 0.28 * noise) == pytest.approx(0.04, rel=0.1)
    assert tolerance(eager, eager + 0.04 * noise) == pytest.approx(0.12, rel=0.1)
    assert (tolerance(eager, eager), tolerance(eager, noise)) == (0.01, 0.2)


@pytest.mark.parametrize("by", [0.5, torch.nan])
def test_one_position_that_is_wrong_is_enough(by: float) -> None:
    eager = torch.randn(17, 500, generator=torch.Generator().manual_seed(0))
    wrong = eager.clone()
    wrong[16] += by * torch.randn(500, generator=torch.Generator().manual_seed(1))
    assert difference(eager, eager, 0.2) == ""
    assert "differ from the eager pass's by" in difference(eager, wrong, 0.2)
