"""A run from its first step to its judgement, and what the README says of one that came to its end or did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme, whole_run
from qlora_demo.catalog import DEFAULT_COLUMNS
from qlora_demo.services import Services
from tests.ml.test_engine import run_with_rows

pytestmark = pytest.mark.slow

JUDGED = {"rows": 2, "loss": 1.5, "exact_match": 0.5}
RESULT: dict[str, Any] = {
    "method": "what it took.",
    "machine": {"device": "a card", "torch": "2.0"},
    "settings": {"model": "shape:tiny"},
    "training": {"steps": 4, "runtime_seconds": 6.1, "peak_memory_bytes": 1 << 30, "eval_loss": 0.25},
    "splits": {"test": {"adapter": JUDGED}},
}
ANSWERED = {
    "ttft_seconds": 0.1,
    "tpot_median_seconds": 0.01,
    "tokens_per_second": 99.0,
    "bandwidth_share": 0.5,
    "model_bytes": 1 << 30,
}


def test_a_run_is_judged_part_by_part(services: Services, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.ml.evaluate.ANSWER_TOKENS", 12)
    run = run_with_rows(services, tiny_model, "qlora")
    found = dict(whole_run.judged(services, run, rows=2, answers=1))
    assert list(found) == ["splits", "columns", "merges", "export"] and found["export"]["verified"]
    assert set(found["columns"]) == set(found["splits"]["test"]) == set(DEFAULT_COLUMNS)
    assert all(len(one["texts"]) == 1 and one["ttft_seconds"] > 0 for one in found["columns"].values())
    told = readme.told(RESULT | found, "x.json")
    assert told.count("eager (no CUDA device)") == 3 and "ended before" not in told


def test_one_that_was_ended_early_says_so() -> None:
    early = readme.told(RESULT, "x.json")
    assert "| test | adapter | 2 | 1.5 | 50.0% |" in early
    assert early.endswith(
        "\nWhat it took. The 4 steps took 6.1 s, loading and the held-out losses included, and at most 1.0 GiB. This "
        "one was ended before it came to all of that.\n"
    )


def test_what_an_answer_of_one_token_does_not_have_is_a_dash() -> None:
    short = ANSWERED | {"tpot_median_seconds": None, "bandwidth_share": None, "decode": ["eager"]}
    later = {"columns": {"adapter": short}, "merges": {"merged:original": {"kl_mean": 0.5}}, "export": {}}
    whole = readme.told(RESULT | later, "x.json")
    assert "| adapter | 100 ms | – | 99.0 | – | 1.0 GiB | eager |" in whole
    assert "| mean KL divergence (nats) | 0.5 |" in whole and "ended before" not in whole


def test_a_column_that_could_not_answer_ends_it_with_its_error() -> None:
    with pytest.raises(SystemExit, match="no numbers"):
        whole_run.figures([{"error": ""}, {"error": "no numbers"}])
