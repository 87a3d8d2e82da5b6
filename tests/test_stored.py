"""Limits on what is kept: runs by number and by size, uploads, comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import TooMany
from qlora_demo.runs import RunStore
from qlora_demo.settings import Limits
from qlora_demo.stored import require_upload_room
from qlora_demo.votes import NewComparison, VoteStore


def test_one_run_too_many_is_refused_with_what_to_delete_and_leaves_nothing(tmp_path: Path) -> None:
    runs = RunStore(tmp_path, Limits(stored_runs=2))
    made = [runs.create(TrainConfig()).id for _ in range(2)]
    before = sorted(tmp_path.iterdir())
    message = (
        rf"^runs: 2 are kept and 2 \(QLORA_DEMO_STORED_RUNS\) is the most; delete some, the oldest is {min(made)}$"
    )
    with pytest.raises(TooMany, match=message):
        runs.create(TrainConfig())
    assert sorted(tmp_path.iterdir()) == before
    runs.delete(made[0])
    runs.create(TrainConfig())


def test_runs_that_are_too_large_together_are_refused_with_the_largest(tmp_path: Path) -> None:
    runs = RunStore(tmp_path, Limits(stored_gb=1))
    small, large = (runs.create(TrainConfig()).path for _ in range(2))
    with (large / "adapter").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(
        TooMany, match=rf"\(QLORA_DEMO_STORED_GB\) is the most; delete some, the largest is {large.name}"
    ):
        runs.create(TrainConfig())
    assert small.exists()


def test_uploads_are_bounded_together(tmp_path: Path) -> None:
    require_upload_room(tmp_path / "none yet", Limits(stored_gb=1))
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(TooMany, match=r"^uploads: .* \(QLORA_DEMO_STORED_GB\) is the most; delete files in"):
        require_upload_room(tmp_path, Limits(stored_gb=1))


def test_comparisons_are_bounded(tmp_path: Path) -> None:
    votes = VoteStore(tmp_path / "votes.sqlite3", most_mb=1)
    new = NewComparison("run", "", "x" * 400_000, {}, ("a", "b"), {})
    with pytest.raises(TooMany, match=r"^votes: votes.sqlite3 holds 1 MB \(QLORA_DEMO_VOTES_MB\), which is the most"):
        for _ in range(10):
            votes.add(new)
    assert 2 <= len(votes.comparisons("run")) <= 4
