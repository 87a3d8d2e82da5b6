"""What was chosen stays chosen: a refresh that was on its way knows nothing of a choice that was made meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_demo.benchmark_config import BenchmarkConfig
from qlora_demo.config import TrainConfig
from qlora_demo.services import Services
from qlora_demo.ui.benchmark_tab import Bench
from qlora_demo.ui.history_panel import History
from qlora_demo.ui.listed import renewed


def chosen_by(update: Any) -> Any:
    """The value that an update of a dropdown sets; the string where it sets none."""
    return update.get("value", "left alone")


@pytest.mark.parametrize("chosen", [None, "a", [], ["a", "b"]])
def test_a_choice_that_is_still_there_is_left_alone(chosen: Any) -> None:
    assert chosen_by(renewed([("A", "a"), ("B", "b")], chosen, chosen)) == "left alone"


@pytest.mark.parametrize(("value", "chosen"), [("b", "a"), (None, "a"), (["b"], ["a", "b"]), ("b", None)])
def test_one_that_is_gone_is_replaced(value: Any, chosen: Any) -> None:
    assert chosen_by(renewed([("B", "b")], value, chosen)) == value


def test_the_history_keeps_what_is_laid_side_by_side(services: Services) -> None:
    """A pair that is started is laid side by side while the history refreshes."""
    panel = History(services)
    *_, seen = panel.refresh(None, [])
    new = services.runs.create(TrainConfig()).id
    _, late, _, seen = panel.refresh(seen, [])
    assert [name for _, name in late["choices"]] == [new] and chosen_by(late) == "left alone"

    _, again, drawn, seen = panel.refresh(seen, [new])
    assert chosen_by(again) == "left alone" and new in str(drawn), "the late one drew none: this one draws it"
    services.runs.delete(new)
    assert chosen_by(panel.refresh(seen, [new])[1]) == []


def test_the_benchmark_that_was_chosen_meanwhile_stays(services: Services) -> None:
    bench = Bench(services, [], [], TrainConfig())
    config = TrainConfig(model="shape:tiny")
    old = services.benchmarks.create(BenchmarkConfig(), config)
    *_, seen = bench.look(old, None)
    services.benchmarks.create(BenchmarkConfig(), config)
    late = bench.look(old, seen)[0]
    assert len(late["choices"]) == 2 and chosen_by(late) == "left alone"
