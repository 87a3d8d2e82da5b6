"""What the Train tab's poll may change of the page."""

from __future__ import annotations

from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.ui.run_panel import poll


def test_a_poll_that_was_on_its_way_leaves_the_choice_that_was_made_meanwhile(services: Services) -> None:
    old = services.runs.create(TrainConfig()).id
    *_, seen = poll(services, old, {})
    new = services.runs.create(TrainConfig()).id

    late = poll(services, old, seen)[0]
    assert {name for _, name in late.choices} == {old, new}
    assert "value" not in late._constructor_args[0]
    begun = poll(services, new, {})[0]
    assert begun._constructor_args[0]["value"] == new


def test_the_choice_goes_where_its_run_is_gone(services: Services) -> None:
    kept = services.runs.create(TrainConfig())
    gone = services.runs.create(TrainConfig())
    write_state(gone.path, RunState(status="failed"))
    *_, seen = poll(services, gone.id, {})
    services.runs.delete(gone.id)
    assert poll(services, gone.id, seen)[0]._constructor_args[0]["value"] == kept.id
