"""Records as text and HTML: nothing that a person or a model wrote becomes markup."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, cast

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.records import Choice, DeviceInfo, Note, RunState
from qlora_demo.records import TrainMetrics as Line
from qlora_demo.runs import Run
from qlora_demo.ui import render, render_results
from qlora_demo.units import GIB

HOSTILE = """"'><img src=x onerror='alert("&")'>"""
CPU = DeviceInfo("cpu", "CPU, 2 cores", 3 * GIB, 8 * GIB)


def a_run(state: RunState, **values: Any) -> Run:
    """A run that is on no disk."""
    return Run("20260101-000000-qlora-0000", Path("/nowhere"), TrainConfig(**values), state)


def steps(*times: float, seconds: float = 0.5) -> list[Line]:
    """Training steps that ended at the given times."""
    return [
        Line(n, time, loss=4.0 / n, learning_rate=n / 1000, step_seconds=seconds, tokens=100, memory_bytes=GIB)
        for n, time in enumerate(times, 1)
    ]


@pytest.mark.parametrize(
    "html",
    [
        render.run_progress(a_run(RunState("failed", error=HOSTILE)), []),
        render.run_progress(a_run(RunState("running", choices=(Choice(HOSTILE, "v", "w"),))), []),
        render.run_progress(a_run(RunState("running", choices=(Choice("w", HOSTILE, "w"),))), []),
        render.run_progress(a_run(RunState("running", choices=(Choice("w", "v", HOSTILE),))), []),
        render.run_progress(a_run(RunState(cast(Any, HOSTILE))), []),
        render.status_line(DeviceInfo("cpu", HOSTILE, 1, 2), "", []),
        render.status_line(CPU, HOSTILE, []),
        render.status_line(CPU, "", [Note(HOSTILE)]),
        render.status_line(CPU, "", [Note(HOSTILE, 0.5)]),
        render.status_line(CPU, "", [Note(HOSTILE, bad=True)]),
        render.facts({HOSTILE: "value"}),
        render.facts({"home": HOSTILE}),
        render.bar(0.5, HOSTILE),
    ],
)
def test_hostile_text_is_shown_and_is_no_markup(html: str) -> None:
    assert escape(HOSTILE) in html
    assert "<img" not in html
    assert HOSTILE not in html


@pytest.mark.parametrize(
    ("fraction", "width"), [(-1, "0.0%"), (0, "0.0%"), (0.255, "25.5%"), (1, "100.0%"), (7, "100.0%")]
)
def test_a_bar_stays_within_its_frame(fraction: float, width: str) -> None:
    assert f"width:{width}" in render.bar(fraction, "")


def test_the_time_left_is_the_steps_to_go_times_a_step_s_wall_time() -> None:
    assert render.seconds_left(steps(100, 102, 104), total=10) == pytest.approx(2 * 7)
    assert render.seconds_left(steps(100, 102), total=2) == 0


def test_the_time_left_goes_by_the_recent_steps() -> None:
    slow, fast = [float(n * 100) for n in range(10)], [900.0 + n for n in range(1, 26)]
    assert render.seconds_left(steps(*slow, *fast), total=45) == pytest.approx(10)


def test_the_time_left_is_shown_while_a_run_is_running_only() -> None:
    running = render.run_progress(a_run(RunState("running", max_steps=10)), steps(100, 102))
    assert "step 2 of 10 · about 16.0 s left" in running
    assert "left" not in render.run_progress(a_run(RunState("stopped", max_steps=10)), steps(100, 102))
    assert "left" not in render.run_progress(a_run(RunState("running", max_steps=10)), steps(100))


def test_the_time_left_knows_nothing_of_a_pause() -> None:
    resumed = a_run(RunState("running", max_steps=10, started_at=9000.0))
    assert "left" not in render.run_progress(resumed, steps(100, 102, 9002))
    assert "about 12.0 s left" in render.run_progress(resumed, steps(100, 102, 9002, 9004))


def test_a_run_that_ended_says_how_long_it_took() -> None:
    state = RunState("finished", max_steps=2, started_at=100.0, ended_at=190.0)
    assert "took 1 min 30 s" in render.run_progress(a_run(state), steps(100, 102))


def test_the_figures_of_a_run_are_those_of_its_recent_steps() -> None:
    lines = [*steps(1, 2), Line(2, 2.5, eval_loss=1.25)]
    html = render.run_progress(a_run(RunState("running", max_steps=4)), lines)
    for name, value in [
        ("training loss, mean of 2 steps", "3.000"),
        ("held-out loss", "1.250"),
        ("speed", "200 tokens/s"),
        ("step", "500 ms"),
        ("peak memory", "1.0 GiB"),
    ]:
        assert f"<dt>{name}</dt><dd>{value}</dd>" in html
    assert 'aria-valuenow="50"' in html


def test_without_a_run_the_page_says_what_to_do() -> None:
    assert "Start training" in render.run_progress(None, [])


def test_what_a_run_does_when_it_is_stopped_or_all_steps_are_done_is_told() -> None:
    going = a_run(RunState("running", max_steps=2), score_rows=8)
    assert "stopping, and saving" not in render.run_progress(going, steps(100))
    assert "stopping, and saving what was trained" in render.run_progress(going, steps(100), stopping=True)
    assert "2 of 2 · saving, then answering up to 8 held-out rows" in render.run_progress(going, steps(100, 102))
    score = {"score": {"exact_match": 0.125, "rows": 8}}
    ended = render.run_progress(a_run(RunState("finished", max_steps=2, summary=score)), steps(100, 102))
    assert "Answers to held-out rows at its end: exact match 12.5% of 8 rows." in ended


def test_a_run_without_steps_or_a_known_end_has_an_empty_bar() -> None:
    html = render.run_progress(a_run(RunState("starting")), [])
    assert "step 0 of …" in html
    assert 'aria-valuenow="0"' in html


def test_a_run_that_waits_says_for_what() -> None:
    checking = render.run_progress(a_run(RunState("checking")), [])
    assert "<p><b>checking its data</b></p>" in checking
    assert "<b>waiting for the device</b></p>" in render.run_progress(a_run(RunState("queued")), [])


def test_the_table_of_runs_has_a_row_per_run_with_its_final_figures() -> None:
    summary = {"steps": 120, "train_loss": 0.12345, "eval_loss": 0.5, "tokens_per_second": 1234.5}
    ended = a_run(RunState("finished", started_at=100.0, ended_at=190.0, summary=summary), r=8)
    rows = render.runs_table([ended, a_run(RunState("created"))]).to_dict("records")
    figures = {"r": 8, "steps": 120, "mean train loss": "0.123", "held-out loss": "0.500", "tokens/s": "1234"}
    assert rows[0] == rows[0] | figures | {"run": ended.id, "state": "finished", "time": "1 min 30 s"}
    assert rows[1] == rows[1] | {"state": "created", "mean train loss": "", "tokens/s": "", "time": ""}


def test_the_table_of_runs_names_the_last_part_of_a_path() -> None:
    [row] = render.runs_table([a_run(RunState("finished"), model="m/n", dataset="/a/long/path/d.csv")]).to_dict(
        "records"
    )
    assert (row["model"], row["data"]) == ("m/n", "d.csv")


def test_the_table_of_no_runs_has_its_columns() -> None:
    assert list(render.runs_table([]).columns[:2]) == ["run", "state"]


def test_a_run_s_label_tells_it_apart() -> None:
    label = render.run_label(a_run(RunState("finished"), model="m/n", dataset="d.csv", r=8))
    assert label == "20260101-000000-qlora-0000 · m/n · d.csv · r 8 · finished"


def test_the_line_at_the_top_says_where_one_is() -> None:
    html = render.status_line(CPU, "", [Note("hub: reachable")])
    for part in ("CPU, 2 cores", "3.0 GiB of 8.0 GiB free", "device is free", "hub: reachable"):
        assert f"<span>{part}</span>" in html
    assert "bundled model" not in html


def test_the_line_at_the_top_shows_a_fetch_in_progress_and_its_error() -> None:
    assert 'aria-valuenow="40"' in render.status_line(CPU, "chat", [Note("downloading", 0.4)])
    no_room = Note("bundled model: no room", bad=True)
    assert 'class="bad">bundled model: no room' in render.status_line(CPU, "chat", [no_room])


def test_an_evaluation_begins_with_what_its_rows_tell_apart_and_how() -> None:
    rows = [{"answers": {"base": {"exact_match": False}, "adapter": {"exact_match": True}}} for _ in range(6)]
    figures = {name: {"rows": 6, "exact_match": share} for name, share in (("base", 0.0), ("adapter", 1.0))}
    drawn = render_results.evaluation({"splits": {"test": figures}, "rows": {"test": rows}})
    assert "By exact match on test: adapter is better than base, right on 6 of 6 rows against 0 (p = 0.031)." in drawn
    assert "61.0% to 100.0%" in drawn and "sign test" in drawn
    alone = render_results.evaluation({"splits": {"test": {"base": figures["base"]}}, "rows": {"test": rows[:0]}})
    assert "Wilson" in alone and "in batches" in alone and "sign test" not in alone
