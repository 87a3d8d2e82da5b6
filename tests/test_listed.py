"""What was chosen stays chosen: a refresh that was on its way knows nothing of a choice that was made meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_demo.benchmark_config import BenchmarkConfig
from qlora_demo.config import TrainConfig
from qlora_demo.errors import RunError
from qlora_demo.services import Services
from qlora_demo.ui.benchmark_tab import Bench
from qlora_demo.ui.history_panel import History
from qlora_demo.ui.listed import renewed
from qlora_demo.ui.run_panel import poll
from tests.calls import Client, numbers, opened, values


def chosen_by(update: Any) -> Any:
    """The value that an update of a dropdown sets; the string where it sets none."""
    return update.get("value", "left alone")


@pytest.mark.parametrize("chosen", ["a", [], ["a", "b"]])
def test_a_choice_that_is_still_there_is_left_alone(chosen: Any) -> None:
    assert chosen_by(renewed([("A", "a"), ("B", "b")], chosen, chosen)) == "left alone"


@pytest.mark.parametrize(("value", "chosen"), [("b", "a"), (None, "a"), (["b"], ["a", "b"]), ("b", None), (None, None)])
def test_one_that_is_gone_is_replaced(value: Any, chosen: Any) -> None:
    assert chosen_by(renewed([("B", "b")], value, chosen)) == value


def test_the_history_keeps_what_is_laid_side_by_side(services: Services) -> None:
    """A pair that is started is laid side by side while the history refreshes."""
    panel = History(services)
    *_, seen = panel.refresh(None, [])
    new = services.runs.create(TrainConfig()).id
    _, late, _, seen = panel.refresh(seen, [])
    assert [name for _, name in late["choices"]] == [new] and chosen_by(late) == "left alone"

    *_, drawn, seen = panel.refresh(seen, [new])
    assert new in str(drawn), "the late one drew none: this one draws it"
    services.runs.delete(new)
    assert chosen_by(panel.refresh(seen, [new])[1]) == []


def test_a_note_that_is_being_written_stays_while_other_runs_are_laid_beside(services: Services) -> None:
    panel = History(services)
    first, other = (services.runs.create(TrainConfig()).id for _ in range(2))
    _, noted, text, tags = panel.lay_side_by_side([first], "")
    assert (noted, text, tags) == (first, "", "")
    drawn, *late = panel.lay_side_by_side([first, other], noted)
    assert other in drawn and [chosen_by(one) for one in late] == ["left alone"] * 3
    panel.annotate([first, other], noted, "tried more rank", "a, b")
    assert panel.lay_side_by_side([other], noted)[1:] == [other, "", ""]
    assert panel.lay_side_by_side([first], other)[1:] == [first, "tried more rank", "a, b"]
    assert panel.lay_side_by_side([], first)[1:] == ["", "", ""]


def test_a_note_is_not_kept_with_another_run(services: Services) -> None:
    panel = History(services)
    first, other = (services.runs.create(TrainConfig()).id for _ in range(2))
    panel.annotate([first], first, "of the first", "")
    with pytest.raises(RunError, match=f"note: the one of {first} is still on its way"):
        panel.annotate([first, other], other, "of the other", "")
    assert panel.lay_side_by_side([first], other)[2] == "of the first"


def test_the_benchmark_that_was_chosen_meanwhile_stays(services: Services) -> None:
    bench = Bench(services, [], [], TrainConfig())
    config = TrainConfig(model="shape:tiny")
    old = services.benchmarks.create(BenchmarkConfig(), config)
    *_, seen = bench.look(old, None)
    services.benchmarks.create(BenchmarkConfig(), config)
    late = bench.look(old, seen)[0]
    assert len(late["choices"]) == 2 and chosen_by(late) == "left alone"


def test_a_choice_that_the_last_list_lacked_is_taken_as_it_comes(services: Services) -> None:
    """The page shows a run that began while a list without it was on its way: the next look lists it."""
    page = opened(services)
    lists = [one for one in numbers(page, "look", "refresh") if _lists(page.fns[one], "run", "overlay")]
    with Client(str(page.local_url)) as client:
        client.open(page)
        new = services.runs.create(TrainConfig()).id
        for number in lists:
            ended = client.call(number, values(page.fns[number], run=new, overlay=[new]))
            assert (ended["success"], ended["told"]) == (True, [])
    assert len(lists) >= 2
    page.close()


def _lists(handler: Any, *names: str) -> bool:
    return any(getattr(part, "elem_id", "") in names for part in handler.inputs)


def test_the_last_run_and_the_last_result_can_go(services: Services) -> None:
    run = services.runs.create(TrainConfig()).id
    *_, seen = poll(services, run, {}, "operator")
    services.runs.delete(run)
    for drawn in (poll(services, run, seen, "operator"), poll(services, None, {}, "operator")):
        assert (drawn[0]["choices"], chosen_by(drawn[0])) == ([], None)
    bench = Bench(services, [], [], TrainConfig())
    result = services.benchmarks.create(BenchmarkConfig(), TrainConfig(model="shape:tiny"))
    assert bench.delete(result)[0] == {"choices": [], "value": None, "__type__": "update"}
