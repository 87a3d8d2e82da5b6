"""What the committed results of trained cases say of themselves is so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.readme import RESULTS


def trained() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The rows of full rows of random tokens, timed as they are now: each with its file and settings."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        rows = result["rows"] if result.get("kind") in ("training", "rank") else []
        found += [
            (path.name, result["config"], row) for row in rows if "step_max_seconds" in row and "score" not in row
        ]
    return found


@pytest.mark.parametrize(("file", "config", "row"), trained(), ids=lambda part: part if isinstance(part, str) else "")
def test_the_speed_is_a_step_s_tokens_over_the_median_step(
    file: str, config: dict[str, Any], row: dict[str, Any]
) -> None:
    tokens = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] * config["max_length"]
    told = row["tokens_per_second"] * row["step_median_seconds"]
    assert told == pytest.approx(tokens, rel=0.005), f"{file}: {row['case']}"


def test_results_of_training_on_both_devices_are_read() -> None:
    assert {file for file, *_ in trained()} >= {"training_cpu.json", "training_h200.json"}
