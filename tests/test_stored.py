"""Limits on what is kept: runs by number and by size, uploads, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.errors import RunError, TooMany
from qlora_demo.records import ExportRequest, RunState
from qlora_demo.results.votes import NewComparison, VoteStore
from qlora_demo.runs import RunStore
from qlora_demo.services import Services
from qlora_demo.settings import Limits
from qlora_demo.stored import require_room
from qlora_demo.system.disk import folder_bytes
from qlora_demo.system.halt import Halt
from tests.abandoned import abandoned
from tests.calls import Client, opened


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


def test_two_runs_where_one_is_the_most_are_refused_with_what_to_do(tmp_path: Path) -> None:
    runs = RunStore(tmp_path, Limits(stored_runs=1))
    with pytest.raises(
        TooMany, match=r"^runs: 0 are kept, 2 more are asked for and 1 .* the most; start one at a time$"
    ):
        runs.create_all([TrainConfig(), TrainConfig()], RunState("checking"))


def sparse(path: Path, size: int) -> Path:
    """A file of so many bytes, which take no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def full(services: Services) -> Services:
    """An app that may keep 1 GB, of which runs, uploads and benchmarks together take all, and none of them alone."""
    small, large = (services.runs.create(TrainConfig()) for _ in range(2))
    assert small.id != large.id
    sparse(large.adapter / "weights", 500 * 10**6)
    sparse(services.settings.uploads / "rows.jsonl", 300 * 10**6)
    sparse(services.settings.home / "benchmarks" / "one" / "log.txt", 200 * 10**6)
    return build_services(replace(services.settings, limits=Limits(stored_gb=1)))


def test_runs_uploads_and_benchmarks_count_together_before_each_of_them_and_an_export(services: Services) -> None:
    limited = full(services)
    largest = max(services.runs.names(), key=lambda name: folder_bytes(services.runs.path(name)))
    writes: dict[str, Callable[[], object]] = {
        "a run": lambda: limited.runs.create(TrainConfig()),
        "an upload": lambda: require_room(limited.settings.home, limited.settings.limits),
        "a benchmark": lambda: abandoned(limited.benchmarks, BenchmarkConfig(), TrainConfig(model="shape:tiny")),
        "an export": lambda: list(limited.engine().export(ExportRequest(largest, "adapter"), Halt())),
    }
    before = sorted(services.settings.home.rglob("*"))
    message = (
        r"^storage: runs, uploads and benchmarks take .* and .* \(QLORA_DEMO_STORED_GB\) is the most; "
        rf"delete some, the largest is runs/{largest} with 477 MiB$"
    )
    for write in writes.values():
        with pytest.raises(TooMany, match=message):
            write()
    assert sorted(services.settings.home.rglob("*")) == before
    services.runs.delete(largest)
    limited.runs.create(TrainConfig())


def test_an_export_to_a_folder_of_one_s_own_is_not_kept_here(services: Services, tmp_path: Path) -> None:
    limited = full(services)
    nothing = min(services.runs.names(), key=lambda name: folder_bytes(services.runs.path(name)))
    request = ExportRequest(nothing, "adapter", None, tmp_path / "out")
    with pytest.raises(RunError, match="it has no adapter"):
        list(limited.engine().export(request, Halt()))


def test_an_upload_beyond_it_is_refused_on_the_page_and_not_kept(services: Services) -> None:
    limited = full(services)
    page = opened(limited)
    [number] = [number for number, one in page.fns.items() if one.inputs and one.inputs[0].elem_id == "upload"]
    with Client(str(page.local_url)) as client:
        [path] = client.http.post("/gradio_api/upload", files={"files": ("new.jsonl", b"x")}).json()
        told = client.call(number, [{"path": path, "meta": {"_type": "gradio.FileData"}}])["told"]
    assert len(told) == 1 and "QLORA_DEMO_STORED_GB" in told[0]
    assert [one.name for one in limited.settings.uploads.iterdir()] == ["rows.jsonl"]


def test_comparisons_are_bounded(tmp_path: Path) -> None:
    votes = VoteStore(tmp_path / "votes.sqlite3", most_mb=1)
    new = NewComparison("run", "", "x" * 400_000, {}, ("a", "b"), {})
    with pytest.raises(TooMany, match=r"^votes: votes.sqlite3 holds 1 MB \(QLORA_DEMO_VOTES_MB\), which is the most"):
        for _ in range(10):
            votes.add(new)
    assert 2 <= len(votes.comparisons("run")) <= 4
