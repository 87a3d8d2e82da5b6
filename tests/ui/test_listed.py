"""What was chosen stays chosen: a refresh that was on its way knows nothing of a choice that was made meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.config import TrainConfig
from qlora_demo.errors import RunError
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.ui.benchmark_tab import Bench
from qlora_demo.ui.chat_tab import runs_with_adapter
from qlora_demo.ui.history_panel import History
from qlora_demo.ui.listed import renewed
from qlora_demo.ui.run_panel import poll
from tests.abandoned import abandoned
from tests.calls import Client, numbers, opened, values

pytestmark = pytest.mark.slow


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
    assert (noted, text, tags) == (f"{first}@0", "", "")
    drawn, *late = panel.lay_side_by_side([first, other], noted)
    assert other in drawn and [chosen_by(one) for one in late] == ["left alone"] * 3
    _, noted = panel.annotate([first, other], noted, "tried more rank", "a, b")
    assert panel.lay_side_by_side([other], noted)[1:] == [f"{other}@0", "", ""]
    assert panel.lay_side_by_side([first], f"{other}@0")[1:] == [noted, "tried more rank", "a, b"]
    assert panel.lay_side_by_side([], noted)[1:] == ["", "", ""]


def test_a_note_is_not_kept_with_another_run(services: Services) -> None:
    panel = History(services)
    first, other = (services.runs.create(TrainConfig()).id for _ in range(2))
    panel.annotate([first], f"{first}@0", "of the first", "")
    with pytest.raises(RunError, match=f"note: the one of {first} is still loading"):
        panel.annotate([first, other], f"{other}@0", "of the other", "")
    assert panel.lay_side_by_side([first], f"{other}@0")[2] == "of the first"


def test_a_note_that_somebody_else_wrote_meanwhile_is_not_overwritten(services: Services) -> None:
    panel, run = History(services), services.runs.create(TrainConfig()).id
    _, ours, *_ = panel.lay_side_by_side([run], "")
    _, theirs = panel.annotate([run], ours, "best so far", "keep")
    with pytest.raises(RunError, match=f"note: somebody changed the one of {run}"):
        panel.annotate([run], ours, "", "review")
    assert panel.lay_side_by_side([run], "")[1:] == [theirs, "best so far", "keep"]
    panel.annotate([run], theirs, "best so far, reviewed", "keep")


def test_the_benchmark_that_was_chosen_meanwhile_stays(services: Services) -> None:
    bench = Bench(services, [], [], TrainConfig())
    config = TrainConfig(model="shape:tiny")
    old = abandoned(services.benchmarks, BenchmarkConfig(), config)
    *_, seen = bench.look(old, None)
    abandoned(services.benchmarks, BenchmarkConfig(), config)
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
    result = abandoned(services.benchmarks, BenchmarkConfig(), TrainConfig(model="shape:tiny"))
    assert bench.delete(result)[0] == {"choices": [], "value": None, "__type__": "update"}


def test_a_run_that_is_talked_to_stays_chosen_while_it_trains_on(services: Services) -> None:
    run, newer = (services.runs.create(TrainConfig()) for _ in range(2))
    for one in (run, newer):
        one.adapter.mkdir()
    write_state(run.path, replace(run.state, status="queued"))
    write_state(newer.path, replace(newer.state, status="finished"))
    kept = runs_with_adapter(services.runs, run.id)
    assert chosen_by(kept) == "left alone" and {name for _, name in kept["choices"]} == {newer.id, run.id}
    assert chosen_by(runs_with_adapter(services.runs, None)) == newer.id


def test_a_page_whose_run_was_deleted_is_told_nothing_at_each_poll(services: Services) -> None:
    run = services.runs.create(TrainConfig()).id
    page = opened(services)
    [number] = numbers(page, "poll")
    with Client(str(page.local_url)) as client:
        services.runs.delete(run)
        ended = client.call(number, values(page.fns[number], judge_run=run))
        assert ended["success"] and ended["told"] == []
    page.close()
