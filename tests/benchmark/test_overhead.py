"""The app against the plain script: the same rows and settings, and the same loss; what the README says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import readme, train_overhead
from benchmarks.plain_sft import LAST_STEPS
from qlora_demo.config import TrainConfig

ROUND = {
    "app": {"tokens_per_second": 30.0, "steady_tokens_per_second": 44.0, "last_loss": 1.01},
    "plain_same": {"tokens_per_second": 20.0, "steady_tokens_per_second": 22.0, "last_loss": 1.0},
    "plain_default": {"tokens_per_second": 10.0, "steady_tokens_per_second": 11.0, "last_loss": 2.02},
}


def settings(folder: Path, *arguments: str) -> TrainConfig:
    return train_overhead.prepared(train_overhead.arguments().parse_args(arguments), folder)


def test_a_shape_trains_random_rows_and_another_model_the_bundled_task(tmp_path: Path) -> None:
    plain = settings(tmp_path)
    assert (plain.model, plain.dataset, plain.learning_rate) == ("smollm2-135m-instruct", "tickets", 2e-3)
    shape = settings(tmp_path, "--model", "shape:llama-2-7b", "--steps", "10", "--batch", "2")
    assert TrainConfig.from_file(tmp_path / "config.json") == shape
    assert (shape.learning_rate, shape.max_steps, shape.per_device_train_batch_size) == (2e-4, 10, 2)
    rows = [json.loads(line)["text"] for line in Path(shape.dataset).read_text("utf-8").splitlines()]
    assert len(set(rows)) == 10 * 2 + 1 and {len(text) for text in rows} == {512}


def test_steps_are_whole_fives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings(tmp_path, "--steps", "12")
    assert "12 is not allowed; give a multiple of 5" in capsys.readouterr().err


@pytest.mark.processes
def test_both_train_to_the_same_loss(home: Path, tmp_path: Path) -> None:
    config = settings(
        tmp_path, "--model", "shape:tiny", "--steps", str(LAST_STEPS), "--batch", "2", "--max-length", "64"
    )
    ours = train_overhead.app(config, tmp_path / "config.json")
    theirs = train_overhead.plain(tmp_path / "config.json", "off")
    assert ours["last_loss"] == pytest.approx(theirs["last_loss"], rel=1e-3)
    assert all(side[f"{kind}tokens_per_second"] > 0 for side in (ours, theirs) for kind in ("", "steady_"))


def test_a_steady_step_is_the_median_of_those_after_the_first_two() -> None:
    assert train_overhead.median_step([9.0, 14.0, 15.0, 16.0, 18.0]) == 1.0


def test_speed_and_loss_are_told_with_the_method() -> None:
    found = train_overhead.compared([ROUND])
    assert (found["ratio_same_settings"], found["ratio_script_defaults"]) == (1.5, 3.0)
    assert found["loss_difference"] == pytest.approx({"plain_same": 0.01, "plain_default": -0.5})
    told = readme.told(
        found | {"model": "shape:tiny", "method": "each\n in turn.", "machine": {"device": "a card"}}, "x.json"
    )
    assert "| the script at the app's settings | 1.50 x | 2.00 x | 1.0100 | 1.0000 | +1.00% |" in told
    assert told.endswith("\nEach in turn.\n") and "plain TRL script: shape:tiny" in told


def test_a_result_of_before_is_told_without_its_losses() -> None:
    older = {"ratio_same_settings": 1.3, "ratio_script_defaults": 1.8, "machine": {"device": "CPU"}}
    assert "| the script at its own defaults | 1.80 x |\n" in readme.told(older, "x.json")


@pytest.mark.parametrize(("rounds", "said"), [(1, "ratio, of one round"), (3, "ratio, median of 3 rounds")])
def test_a_ratio_says_of_how_many_rounds_it_is(rounds: int, said: str) -> None:
    found = train_overhead.compared([ROUND] * rounds) | {"rounds": [ROUND] * rounds, "machine": {"device": "a card"}}
    assert f"| {said} |" in readme.told(found, "x.json")


def test_a_gpu_s_rows_tell_what_was_taken_of_it() -> None:
    row = {"case": "a", "fits": True, "peak_bytes": 1 << 30, "device_peak_bytes": 3 << 30}
    result = {"kind": "training", "rows": [row], "machine": {"device": "a card", "cuda": "12"}}
    assert "| a | 3.0 GiB | – |" in readme.told(result, "x.json")
    assert "| a | 1.0 GiB | – |" in readme.told(result | {"machine": {"device": "CPU"}}, "x.json")
