"""The guided first visit: each stage is told by what is on the disk, and every button has a control to lead to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import TrainConfig
from qlora_demo.jobs import Job, save_result
from qlora_demo.records import LOG_ENDS, Progress, RunState
from qlora_demo.results.report import save
from qlora_demo.results.reporting import gather
from qlora_demo.runs import Run, write_state
from qlora_demo.services import Services
from qlora_demo.ui import stages
from qlora_demo.ui.render_guide import guide as drawn
from qlora_demo.ui.stages import STAGES, Standing, standing
from tests.calls import Client, numbers, opened, values


def ended(services: Services, state: RunState, *, adapter: bool = True) -> Run:
    run = services.runs.create(TrainConfig())
    if adapter:
        run.adapter.mkdir()
    write_state(run.path, state)
    return services.runs.get(run.id)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [((), stages.DATA), (("Data",), stages.BEFORE), (("Data", "Before"), stages.TRAIN), (("Before",), stages.DATA)],
)
def test_before_any_run_the_page_remembers(seen: tuple[str, ...], expected: stages.Stage) -> None:
    assert standing([], None, seen) == Standing(expected)


def test_a_home_is_followed_from_its_first_run_to_its_report(services: Services) -> None:
    run = ended(services, RunState("finished"))

    def stands(job: Job | None = None, seen: tuple[str, ...] = ()) -> Standing:
        return standing(services.runs.all(), job, seen)

    assert stands().next == stages.AFTER
    assert stands(seen=("After",)).next == stages.MEASURE
    at_work = stands(Job("evaluation", run.id, Progress("row 3 of 50", 0.1)))
    assert (at_work.next, at_work.waits) == (stages.MEASURE, "At work: evaluation, row 3 of 50.")
    failed = stands(Job("evaluation", run.id, Progress("row 3", 0.1), going=False, error="no room"))
    assert (failed.next, failed.failed) == (stages.MEASURE, "no room")
    save_result(run, "evaluation", {"splits": {}}, complete=False)
    assert stands() == Standing(stages.MEASURE, failed="The last evaluation ended before its last row.")
    save_result(run, "evaluation", {"splits": {}})
    assert stands().next == stages.REPORT
    save(gather(services.runs, services.votes, run), run.path / "report")
    assert stands() == Standing(None) and drawn(stands()) == ""


def test_of_a_run_that_trains_and_a_newer_one_that_waits_the_one_that_trains_is_told(services: Services) -> None:
    run = services.runs.create(TrainConfig())
    runs = [replace(run, state=RunState(status)) for status in ("checking", "queued", "running")]
    assert standing(runs, None, ()).waits.startswith("The run is running;")


def test_a_failed_run_is_told_and_training_is_still_the_next_thing(services: Services) -> None:
    ended(services, RunState("failed", error="<b>no room</b>"), adapter=False)
    where = standing(services.runs.all(), None, ())
    assert (where.next, where.failed) == (stages.TRAIN, "The last run failed: <b>no room</b>")
    assert "&lt;b&gt;no room" in drawn(where) and "<b>no room" not in drawn(where)


def test_the_guide_tells_how_a_killed_run_ended_and_leaves_its_log_to_the_run(services: Services) -> None:
    ended(
        services, RunState("failed", error=f"it ended without reporting an error{LOG_ENDS}{{'loss': 1}}"), adapter=False
    )
    assert standing(services.runs.all(), None, ()).failed == "The last run failed: it ended without reporting an error"


def test_the_line_marks_what_is_done_and_what_is_next() -> None:
    text = drawn(Standing(stages.TRAIN))
    assert text.count('class="done"') == STAGES.index(stages.TRAIN) == 2
    assert text.count('<li aria-current="step">Train</li>') == 1 and stages.TRAIN.tells in text


def test_a_question_of_its_own_makes_room_for_another_and_a_person_s_does_not(services: Services) -> None:
    page = opened(services)
    before, after = (numbers(page, "lead")[STAGES.index(stage)] for stage in (stages.BEFORE, stages.AFTER))
    with Client(str(page.local_url)) as newcomer:
        newcomer.open(page)

        def put(number: int, typed: str | None) -> Any:
            handler = page.fns[number]
            return newcomer.call(number, values(handler, prompt=typed, chat_run=SMOLLM2.name))["output"]["data"][1]

        assert isinstance(put(before, "My own"), dict), "left alone"
        first = put(before, None)  # the tab was never opened
        assert isinstance(first, str) and first
        assert put(before, " ") == first
        run = ended(services, RunState("finished"))
        (run.path / "heldout").mkdir()
        row = {"messages": [{"role": "user", "content": "Never seen"}, {"role": "assistant", "content": "a"}]}
        (run.path / "heldout" / "test.jsonl").write_text(json.dumps(row), "utf-8")
        assert isinstance(put(after, "My own"), dict), "left alone"
        assert put(after, first) == "Never seen"
    page.close()
