"""The command line: one JSON document on stdout, exit codes that scripts can rely on, errors in one line."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.cli import main
from qlora_demo.commands.arguments import train_config
from qlora_demo.commands.console import print_result
from qlora_demo.config import TrainConfig
from qlora_demo.errors import RunError
from qlora_demo.knobs import field_names
from qlora_demo.records import Answer, Progress, RunState, Step
from qlora_demo.results.exporting import export_folder
from qlora_demo.runs import write_state
from qlora_demo.services import Services

FLAGS = ["--max-length", "64", "--r", "4", "--max-steps", "2", "--per-device-train-batch-size", "2", "--eval-rows", "4"]


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    code = main([*argv, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a request that is wrong."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.processes
def test_train_compare_evaluate_merge_and_list_one_run(
    home: Path, tiny_model: Path, chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = run_json(capsys, "train", "--model", str(tiny_model), "--dataset", str(chat_file), *FLAGS)
    assert trained["state"] == "finished"
    figures = {"steps", "train_loss", "tokens_per_second", "peak_memory_bytes", "runtime_seconds"}
    assert figures | {"run", "trainable_parameters"} <= set(trained)
    run = trained["run"]
    lines = (home / "runs" / run / "train.log").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines if line.startswith('{"time"')]
    assert [event["event"] for event in events if "logger" not in event] == ["training.loaded", "training.ended"]
    assert {event["run"] for event in events} == {run}

    compared = run_json(capsys, "compare", run, "--prompt", "a", "--prompt", "b", "--max-new-tokens", "4")
    assert [result["prompt"] for result in compared["results"]] == ["a", "b"]
    for result in compared["results"]:
        assert list(result["answers"]) == ["base", "adapter", "merged"]
        for answer in result["answers"].values():
            assert {"text", "new_tokens", "ttft_seconds", "tokens_per_second", "model_bytes", "finish"} <= set(answer)

    evaluated = run_json(capsys, "evaluate", run, "--variants", "base,adapter", "--limit", "2")
    assert {"loss", "perplexity", "token_accuracy", "exact_match"} <= set(evaluated["variants"]["adapter"])

    merged = run_json(capsys, "merge", run, "--onto", "original", "--out", str(tmp_path / "merged"))
    assert (merged["path"], merged["onto"]) == (str(tmp_path / "merged"), "original")
    assert merged["fidelity"]["kl_mean"] >= 0

    faithful = run_json(capsys, "fidelity", run, "--limit", "2")
    assert len(faithful["merges"]) == 4 and faithful["sentence"]
    exported = run_json(capsys, "export", run, "--what", "adapter", "--out", str(tmp_path / "new" / "deep" / "adapter"))
    assert "vllm serve" in (Path(exported["path"]) / "README.md").read_text("utf-8")
    reported = run_json(capsys, "report", run, "--out", str(tmp_path / "report"))
    assert "Before and after" in Path(reported["html"]).read_text("utf-8")

    assert "already" in refused(capsys, "runs", "stop", run)
    assert "there is nothing left to train" in refused(capsys, "runs", "resume", run)
    assert [row["run"] for row in run_json(capsys, "runs", "list")] == [run]
    assert run_json(capsys, "runs", "show", run)["config"]["r"] == 4
    assert run_json(capsys, "runs", "delete", run)["state"] == "deleted"
    assert run_json(capsys, "runs", "list") == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--r", "0"], "r: '0' is not allowed; give a whole number >= 1 and <= 256"),
        (["train", "--learning-rate", "fast"], "learning_rate: 'fast' is not allowed; give a number > 0 and <= 1"),
        (["train", "--method", "full"], "method: 'full' is not allowed; give one of qlora, lora"),
        (["train", "--processes", "0"], "argument --processes: '0' is not allowed"),
        (["train", "--config", "nowhere.json"], "config: cannot read nowhere.json"),
        (["train", "--rank", "8"], "python -m qlora_demo train: unknown argument --rank"),
        (["train", "--lerning-rate=1"], "unknown argument --lerning-rate=1, did you mean --learning-rate;"),
        (["compare", "20260101-000000-qlora-0000", "--prompt", "a"], "run '20260101-000000-qlora-0000': no such run"),
        (["compare", "../../etc", "--prompt", "a"], "run '../../etc': no such run"),
        (["runs", "show"], "RUN: missing"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(
    home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in refused(capsys, *argv)


def test_a_plan_needs_no_weights(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target-modules", "attention", "--per-device-train-batch-size", "4", "--max-length", "512"]
    found = run_json(capsys, "plan", "--model", "llama-2-7b", "--gpu-memory", "24GB", *flags)
    assert (found["trainable_parameters"], found["all_parameters"]) == (16_777_216, 6_755_192_832)
    assert found["fits"] and found["total_bytes"] == sum(item["bytes"] for item in found["items"])
    assert "'lots' is not allowed; give a size like 24GB" in refused(capsys, "plan", "--gpu-memory", "lots")
    assert "'./nowhere' is no folder here" in refused(capsys, "plan", "--model", "./nowhere")


def test_preflight_tells_what_training_would_see(
    home: Path, tiny_model: Path, chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "preflight", "--model", str(tiny_model), "--dataset", str(chat_file))
    assert (found["rows"], found["fatal"]) == (40, "")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q"}\n{"prompt": "p", "completion": "a"}\n', "utf-8")
    line = refused(capsys, "preflight", "--model", str(tiny_model), "--dataset", str(bad))
    assert "bad.jsonl, line 2" in line and "(cannot be used: 1 row)" in line


@pytest.mark.processes
def test_wrong_data_is_refused_and_leaves_no_run(
    home: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": ""}\n', "utf-8")
    line = refused(capsys, "train", "--model", str(tiny_model), "--dataset", str(bad), *FLAGS)
    assert line.endswith("line 2, message 2: has no answer; remove the row or fill it")
    assert run_json(capsys, "runs", "list") == []


REFUSED = RunState("failed", error="dataset: there is no file rows.jsonl", refused=True)


def test_a_start_that_is_refused_leaves_no_run_and_a_run_that_is_resumed_stays(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_demo.launcher.Launcher._spawn", lambda self, run, *_: write_state(run.path, REFUSED))
    assert refused(capsys, "train") == f"error: {REFUSED.error}"
    assert services.runs.names() == []
    run = services.runs.create(TrainConfig(), RunState("failed"))
    assert refused(capsys, "runs", "resume", run.id) == f"error: {REFUSED.error}"
    assert services.runs.get(run.id).state == REFUSED


def test_a_refused_run_whose_resumption_is_interrupted_while_it_waits_stays(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    run = services.runs.create(TrainConfig(), REFUSED)
    monkeypatch.setattr("qlora_demo.launcher.Launcher.start_next", lambda self: None)
    monkeypatch.setattr("qlora_demo.commands.console.time", SimpleNamespace(sleep=interrupted))
    assert run_json(capsys, "runs", "resume", run.id) == {"run": run.id, "state": "stopped"}
    assert services.runs.names() == [run.id]


@pytest.mark.parametrize("command", ["evaluate", "fidelity", "merge", "export"])
def test_a_run_is_not_deleted_while_a_command_works_with_it(
    services: Services, capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any) -> Iterator[Step]:
        with pytest.raises(RunError, match="a job works with it"):
            services.runs.delete(run.id)
        yield Step(Progress("done"), {"variants": {}, "splits": {}, "left_out": 0, "weights": {}})

    run = services.runs.create(TrainConfig())
    engine = SimpleNamespace(evaluate=work, fidelity=work, export=work, resident=tuple, release=lambda: None)
    monkeypatch.setattr("qlora_demo.engine.OnDemand.__call__", lambda self: engine)
    run_json(capsys, command, run.id)
    services.runs.delete(run.id)


def test_an_evaluation_says_which_columns_it_tells_apart(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"base": {"exact_match": 0.0}, "adapter": {"exact_match": 1.0}}
    found = {"variants": {}, "splits": {}, "left_out": 0, "weights": {}, "rows": {"test": [{"answers": answers}] * 8}}
    steps = [Step(Progress("done"), found)]
    engine = SimpleNamespace(evaluate=lambda *_: iter(steps), resident=tuple, release=lambda: None)
    monkeypatch.setattr("qlora_demo.engine.OnDemand.__call__", lambda self: engine)
    assert run_json(capsys, "evaluate", services.runs.create(TrainConfig()).id)["verdicts"] == [
        "By exact match on test: adapter is better than base, right on 8 of 8 rows against 0 (p = 0.0078)."
    ]


def test_json_is_json_also_where_a_run_diverged(services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    run = services.runs.create(TrainConfig())
    write_state(run.path, RunState("failed", summary={"train_loss": math.nan, "eval_loss": math.inf}))
    assert main(["runs", "list", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told == {"run": run.id, "state": "failed", "train_loss": None, "eval_loss": None}


def test_a_stop_that_comes_as_the_run_ends_is_no_error(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        write_state(run.path, RunState("finished", summary={"steps": 2}))
        raise KeyboardInterrupt

    run = services.runs.create(TrainConfig(), RunState("failed"))
    monkeypatch.setattr("qlora_demo.launcher.Launcher.start_next", lambda self: None)
    monkeypatch.setattr("qlora_demo.commands.console.time", SimpleNamespace(sleep=interrupted))
    assert run_json(capsys, "runs", "resume", run.id) == {"run": run.id, "state": "finished", "steps": 2}


def answering(monkeypatch: pytest.MonkeyPatch, errors: dict[str, str]) -> None:
    """An engine that answers each prompt by itself, or fails with what is given for it."""

    def answer(request: Any, halt: Any) -> Iterator[tuple[Answer, ...]]:
        asked = request.conversations["base"][-1]["content"]
        yield (Answer("base", text=asked, error=errors.get(asked, "")),)

    engine = SimpleNamespace(answer=answer, resident=tuple, release=lambda: None)
    monkeypatch.setattr("qlora_demo.engine.OnDemand.__call__", lambda self: engine)


def test_a_prompt_that_fails_takes_no_other_answer_with_it(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.runs.create(TrainConfig())
    answering(monkeypatch, {"long": "prompt: is too long"})
    found = run_json(capsys, "compare", run.id, "--variants", "base", "--prompt", "long", "--prompt", "short")
    answers = [result["answers"]["base"] for result in found["results"]]
    assert [(one["text"], one["error"]) for one in answers] == [("long", "prompt: is too long"), ("short", "")]
    assert refused(capsys, "compare", run.id, "--variants", "base", "--prompt", "long") == "error: prompt: is too long"


def test_answers_that_found_no_memory_are_a_failure(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = services.runs.create(TrainConfig())
    answering(monkeypatch, {"long": "device: out of memory"})
    assert main(["compare", run.id, "--variants", "base", "--prompt", "long"]) == 1
    assert capsys.readouterr().err.endswith("error: device: out of memory\n")


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        ("ada/a b", "hf_x", "push: 'ada/a b' is not a repository name; write owner/name"),
        ("ada/one", "", "HF_TOKEN: is not set; set it to an access token that may write"),
        ("ada/one", "hf_x y", "HF_TOKEN: holds a space, a line end or a sign that no token has"),
    ],
)
def test_what_cannot_be_pushed_is_not_exported(
    services: Services,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    token: str,
    said: str,
) -> None:
    monkeypatch.setattr("qlora_demo.engine.OnDemand.__call__", lambda self: pytest.fail("it was exported"))
    monkeypatch.setenv("HF_TOKEN", token)
    run = services.runs.create(TrainConfig())
    assert said in refused(capsys, "export", run.id, "--push", repo)


def test_what_was_exported_already_is_pushed(
    services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_demo.engine.OnDemand.__call__", lambda self: pytest.fail("it was exported"))
    monkeypatch.setattr("qlora_demo.hub.HuggingFaceHub.push", lambda self, folder, repo, **_: f"{repo}/{folder.name}")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    run = services.runs.create(TrainConfig())
    folder = export_folder(run, "merged", "dequantized")
    folder.mkdir(parents=True)
    told = run_json(capsys, "export", run.id, "--push", "ada/one")
    assert (told["path"], told["address"]) == (str(folder), "ada/one/merged-dequantized")


def test_a_reader_that_has_seen_enough_is_no_error(home: Path) -> None:
    command = f"{sys.executable} -m qlora_demo plan --model shape:llama-2-7b | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_bytes_and_times_are_written_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({"started_at": 1.8e9, "ended_at": None})
    assert re.fullmatch(r"started_at: 2027-01-1\d \d\d:\d\d:00 \S+\nended_at: None\n", capsys.readouterr().out)
    print_result({"total_bytes": 8270696448, "rows": []})
    assert capsys.readouterr().out == "total_bytes: 7.7 GiB (8,270,696,448 bytes)\nrows: []\n"
    print_result([])
    assert capsys.readouterr().out == "none\n"


def test_flags_override_the_config_file(tmp_path: Path) -> None:
    from qlora_demo import cli

    path = tmp_path / "config.json"
    path.write_text(TrainConfig(r=8, lora_alpha=64).model_dump_json(), "utf-8")
    args = cli._parser().parse_args(["train", "--config", str(path), "--r", "4"])
    config = train_config(args)
    assert (config.r, config.lora_alpha) == (4, 64)


def test_every_config_field_is_a_flag() -> None:
    from qlora_demo import cli

    values = [part for name in field_names(TrainConfig) for part in (f"--{name.replace('_', '-')}", "1")]
    args = cli._parser().parse_args(["train", *values])
    assert all(getattr(args, name) == "1" for name in field_names(TrainConfig))


def test_a_failure_is_exit_1_and_says_where_the_log_is(
    home: Path, tiny_model: Path, chat_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qlora_demo.launcher.train_command", lambda run, processes: [sys.executable, "-c", "raise SystemExit('boom')"]
    )
    assert main(["train", "--model", str(tiny_model), "--dataset", str(chat_file)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "boom" in error and "the whole log is" in error and error.endswith("train.log")


def test_a_module_run_prints_help_and_version_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "qlora_demo", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip()
    assert " torch" not in done.stderr
