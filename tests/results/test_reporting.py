"""What is gathered for a report, and which conversations were chosen for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, RunError, WorkError
from qlora_demo.jobs import save_result
from qlora_demo.records import Answer, AnswerTiming, Choice, Proof, RunState, TrainMetrics
from qlora_demo.results.history import write_note
from qlora_demo.results.report import save, to_html
from qlora_demo.results.reporting import gather, keep_conversation, write_report
from qlora_demo.results.votes import NewComparison
from qlora_demo.runs import Run, append_metrics, write_state
from qlora_demo.services import Services

ANSWER = Answer("adapter", "yes", (1, 2), AnswerTiming(5, 2, 0.1, 0.2, (0.1,)), "stop", Proof("nf4", "on", "ab12"), 100)


@pytest.fixture
def run(services: Services) -> Run:
    made = services.runs.create(TrainConfig())
    write_state(made.path, RunState("finished", choices=(Choice("a", "b", "c"),), summary={"train_loss": 0.5}))
    return services.runs.get(made.id)


def test_a_fresh_run_has_a_report_of_what_there_is(services: Services, run: Run) -> None:
    found = gather(services.runs, services.votes, run)
    assert (found.evaluation, found.fidelity, found.prompts, found.conversations, found.votes) == (
        None,
        None,
        None,
        [],
        None,
    )
    assert found.state["summary"] == {"train_loss": 0.5} and found.choices == (Choice("a", "b", "c"),)
    assert {"device", "platform", "python", "torch", "gradio"} <= set(found.machine)


def test_a_report_is_called_by_what_was_trained_on_what(services: Services) -> None:
    chosen = TrainConfig(model="someone/small-base", dataset="/srv/home/uploads/20261127-1a2b-mine.jsonl")
    run = services.runs.create(chosen)
    assert gather(services.runs, services.votes, run).title == "someone/small-base on 20261127-1a2b-mine.jsonl"


def test_all_that_was_measured_said_and_voted_is_in_it(services: Services, run: Run, tmp_path: Path) -> None:
    append_metrics(run.path, TrainMetrics(1, 1.0, loss=2.0))
    save_result(run, "evaluation", {"splits": {"test": {"base": {"rows": 1, "loss": 3.25, "exact_match": 0.0}}}})
    keep_conversation(run, "be brief", "is it?", [ANSWER], {})
    write_note(run, "looks well", "kept")
    kept = NewComparison(run.id, "", "p", {}, ("base", "adapter"), {})
    services.votes.vote(services.votes.add(kept), "adapter")
    found = gather(services.runs, services.votes, run)
    text = to_html(found)
    assert all(part in text for part in ("3.25", "is it?", "adapter on, logits ab12", "do not separate", "looks well"))
    assert json.loads(save(found, tmp_path)["json"].read_text("utf-8"))["conversations"][0]["prompt"] == "is it?"


def test_conversations_are_added_in_their_order(run: Run) -> None:
    assert keep_conversation(run, "", "first", [ANSWER], {}) == 1
    assert keep_conversation(run, "", "second", [ANSWER], {}) == 2


def test_a_conversation_brings_no_deleted_run_back(services: Services, run: Run) -> None:
    services.runs.delete(run.id)
    with pytest.raises(RunError, match=f"^{run.id}: it was deleted meanwhile"):
        keep_conversation(run, "", "late", [ANSWER], {})
    assert services.runs.names() == []


def test_a_report_brings_no_deleted_run_back(services: Services, run: Run) -> None:
    found = gather(services.runs, services.votes, run)
    services.runs.delete(run.id)
    with pytest.raises(RunError, match=f"^{run.id}: it was deleted meanwhile"):
        write_report(services.runs, services.votes, run, run.path / "report")
    with pytest.raises(WorkError, match="report: cannot be written: No such file"):
        save(found, run.path / "report")
    assert services.runs.names() == []


def test_a_run_is_not_deleted_while_its_report_is_made(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def versions(_: str) -> dict[str, str]:
        with pytest.raises(RunError, match="a job works with it"):
            services.runs.delete(run.id)
        return {}

    monkeypatch.setattr(services.runs, "versions", versions)
    assert write_report(services.runs, services.votes, run, run.path / "report")["html"].is_file()


def test_there_must_be_an_answer_to_keep(run: Run) -> None:
    with pytest.raises(ConfigError, match="there is no answer to keep yet"):
        keep_conversation(run, "", "", [], {})
