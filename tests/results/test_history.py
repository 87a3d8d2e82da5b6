"""Notes, runs side by side, the pair, and the queue's dispatcher."""

from __future__ import annotations

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError
from qlora_demo.jobs import Job, save_result
from qlora_demo.records import Progress, RunState, TrainMetrics
from qlora_demo.results.history import RunNote, pair_of, read_note, score, side_by_side, write_note
from qlora_demo.runs import Run, append_metrics, write_state
from qlora_demo.services import Services
from qlora_demo.upkeep.dispatch import Dispatcher


@pytest.fixture
def run(services: Services) -> Run:
    made = services.runs.create(TrainConfig())
    summary = {
        "train_loss": 0.5,
        "eval_loss": 0.25,
        "peak_memory_bytes": 1 << 30,
        "score": {"rows": 16, "exact_match": 0.75},
    }
    write_state(made.path, RunState("finished", summary=summary))
    return services.runs.get(made.id)


def test_a_note_and_its_tags_stay_with_the_run(run: Run) -> None:
    assert read_note(run) == RunNote()
    write_note(run, " tried <b>more</b> rank ", "a, b,, a")
    assert read_note(run) == RunNote("tried <b>more</b> rank", ("a", "b"))
    (run.path / "note.json").write_text("[")
    assert read_note(run) == RunNote()
    with pytest.raises(ConfigError, match="2001 characters are too many"):
        write_note(run, "x" * 2001, "")


def test_a_pair_differs_in_the_base_alone(run: Run) -> None:
    qlora, lora = pair_of(TrainConfig(method="lora", init_lora_weights="pissa", r=8), recomputes=True)
    assert (qlora.method, lora.method) == ("qlora", "lora")
    assert qlora.changed(method="lora") == lora
    assert lora.score_rows > 0 and lora.init_lora_weights == "default"
    assert qlora.gradient_checkpointing == lora.gradient_checkpointing == "on"


def test_runs_side_by_side(services: Services, run: Run) -> None:
    other = services.runs.create(TrainConfig(method="lora"))
    for step, seconds in enumerate((1.0, 3.0, 2.0), 1):
        append_metrics(run.path, TrainMetrics(step, 1.0, loss=1.0, step_seconds=seconds))
    table = side_by_side(services.runs, [run, other])
    assert table.head == ("", run.id, other.id)
    rows = {name: cells for name, *cells in table.rows}
    assert rows["held-out loss"] == ["0.2500", "–"]
    assert rows["score (exact match)"] == ["75.0% of 16 rows", "–"]
    assert rows["median step"] == ["2.0 s", "–"]
    assert rows["peak memory"] == ["1.0 GiB", "–"]


def test_a_whole_evaluation_goes_before_the_score_at_the_end(run: Run) -> None:
    evaluation = {"variants": {"adapter": {"exact_match": 0.9, "rows": 100}}}
    save_result(run, "evaluation", evaluation, complete=False)
    assert score(run) == "75.0% of 16 rows"
    save_result(run, "evaluation", evaluation)
    assert score(run) == "90.0% of 100 rows"


def test_the_dispatcher_starts_nothing_while_something_trains(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(services.launcher, "start_next", lambda: started.append(1))
    dispatcher = Dispatcher(services)
    dispatcher.look()
    assert started == []
    made = services.runs.create(TrainConfig())
    write_state(made.path, RunState("queued"))
    services.jobs.last = Job("evaluation", made.id, Progress("at work"))
    dispatcher.look()
    assert started == [], "a job has the models"
    services.jobs.last = None
    dispatcher.look()
    assert started == [1]
