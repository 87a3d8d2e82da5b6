"""What the Train tab's poll may change of the page, and what it tells visitors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_demo.checking import RESULT
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.errors import RunError
from qlora_demo.jobs import save_result
from qlora_demo.records import Lighter, RunState
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.ui.run_panel import lightening, poll
from tests.calls import Client, numbers, opened, values

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
DATA = {
    "rows": 1,
    "mapping": {"text": "text"},
    "lengths": {"mean": 1, "median": 1, "p95": 1, "longest": 1, "histogram": [[8, 1]]},
    "max_length": 8,
    "problems": [{"what": "appears more than once", "fatal": False, "count": 2, "rows": ["row 1", "row 2"]}],
    "rendered": [[["my private row", True]]],
    "loss_on": "all",
}
OPERATORS = ("my private log", "my private row", "Kept in", "runs/")
EVERYBODY = ("ended without reporting an error", "Configuration", "1 row<", "Appears more than once: 2 rows")


def test_a_poll_that_was_on_its_way_leaves_the_choice_that_was_made_meanwhile(services: Services) -> None:
    old = services.runs.create(TrainConfig()).id
    *_, seen = poll(services, old, {}, "operator")
    new = services.runs.create(TrainConfig()).id

    late = poll(services, old, seen, "operator")[0]
    assert {name for _, name in late["choices"]} == {old, new}
    assert "value" not in late
    begun = poll(services, new, {}, "operator")[0]
    assert begun["value"] == new


def test_the_choice_goes_where_its_run_is_gone(services: Services) -> None:
    kept = services.runs.create(TrainConfig())
    gone = services.runs.create(TrainConfig())
    write_state(gone.path, RunState(status="failed"))
    *_, seen = poll(services, gone.id, {}, "operator")
    services.runs.delete(gone.id)
    assert poll(services, gone.id, seen, "operator")[0]["value"] == kept.id


@pytest.mark.parametrize("role", ["visitor", "operator"])
def test_log_folder_and_rows_are_shown_to_operators_only(services: Services, role: str) -> None:
    run = services.runs.create(TrainConfig(dataset=str(services.settings.uploads / "mine.jsonl")))
    (run.path / "train.log").write_text("Traceback\nmy private log\n", "utf-8")
    save_result(run, RESULT, DATA)
    write_state(run.path, RunState("running"))
    done = services.runs.create(TrainConfig())
    done.adapter.mkdir()
    save_result(done, "export", {"what": "merged", "path": str(done.path), "load": {"vllm": "vllm serve"}})
    write_state(done.path, RunState("finished"))
    guarded = build_services(replace(services.settings, password=PASSWORD))
    page = opened(guarded)
    with Client(str(page.local_url)) as client:
        if role == "operator":
            client.sign_in(PASSWORD)
        client.open(page)
        drawn = ""
        for shown in (done.id, run.id):  # of which one is drawn already
            for number in numbers(page, "look", "redraw"):
                handler = page.fns[number]
                if _draws(handler, "progress", "exported"):
                    drawn += str(client.call(number, values(handler, run=shown, judge_run=done.id)))
    assert all(said in drawn for said in EVERYBODY)
    assert [said in drawn for said in (*OPERATORS, str(services.settings.home))] == [role == "operator"] * 5
    assert "uploads/mine.jsonl" in drawn


def _draws(handler: Any, *names: str) -> bool:
    return any(getattr(part, "elem_id", "") in names for part in handler.outputs)


def test_who_signs_out_on_an_open_page_sees_the_log_no_longer(services: Services) -> None:
    run = services.runs.create(TrainConfig())
    (run.path / "train.log").write_text("my private log", "utf-8")
    *_, seen = poll(services, run.id, {}, "operator")
    assert "my private log" in poll(services, run.id, {}, "operator")
    drawn = poll(services, run.id, seen, "visitor")
    assert "" in drawn and "my private log" not in drawn


def test_what_is_deleted_is_what_was_chosen_when_delete_was_pressed_first(services: Services) -> None:
    kept, gone = (services.runs.create(TrainConfig()).id for _ in range(2))
    page = opened(services)
    first, _ = numbers(page, "ask_first")
    sure, _ = numbers(page, "delete_named")
    with Client(str(page.local_url)) as client:
        client.open(page)
        assert "none is chosen" in str(client.call(first, [None])["told"])
        button, *_ = client.call(first, [gone])["output"]["data"]
        assert button["value"] == f"Delete {gone} for good" and button["visible"]
        assert set(services.runs.names()) == {gone, kept}, "one press deletes nothing"
        assert client.call(sure, [kept])["success"], "chosen meanwhile"
    assert services.runs.names() == [kept]
    page.close()


def test_lighter_settings_that_are_no_longer_proposed_are_refused(services: Services) -> None:
    run = services.runs.create(TrainConfig())
    with pytest.raises(RunError, match="created now, and nothing lighter is proposed"):
        lightening(services, ["r"], 0)(run.id)


def test_the_form_takes_a_run_s_processes_with_its_settings(services: Services) -> None:
    state = RunState("failed", processes=4, lighter=(Lighter({"r": 4}, 1),))
    run = services.runs.create(TrainConfig(r=8), state)
    page = opened(services)
    with Client(str(page.local_url)) as client:
        for handler, r in (("reuse", 8), ("apply", 4)):
            number = numbers(page, handler)[0]
            told = client.call(number, [run.id])["output"]["data"]
            filled = {str(part.elem_id): value for part, value in zip(page.fns[number].outputs, told, strict=True)}
            assert (filled["processes"], filled["TrainConfig-r"]) == (4, r)
