"""Real benchmarks of a tiny shape, each case a process: sane figures, stop, refusals, what is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_demo.benchmark.cases import Case, cases
from qlora_demo.benchmark.comparison import comparison
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.plots import figures
from qlora_demo.benchmark.runner import Benchmarks, read_result_file
from qlora_demo.benchmark.tables import machine, table
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, DeviceBusy, RequestError, RunError
from qlora_demo.gpu import Lease
from qlora_demo.records import Progress
from qlora_demo.settings import Settings
from qlora_demo.system.disk import new_folder
from qlora_demo.system.locks import is_held
from tests.abandoned import abandoned

TINY = TrainConfig(model="shape:tiny", max_length=64, per_device_train_batch_size=2, target_modules="attention", r=4)


def quiet(progress: Progress) -> None:
    """Nobody watches."""


@pytest.fixture
def benchmarks(home: Path) -> Benchmarks:
    return Benchmarks(Settings(home), Lease(home))


def measured(
    benchmarks: Benchmarks,
    options: BenchmarkConfig,
    monkeypatch: pytest.MonkeyPatch,
    *keep: int,
    config: TrainConfig = TINY,
) -> Any:
    """A benchmark's result with only some of its cases: each costs a process that imports torch."""
    every = cases
    monkeypatch.setattr("qlora_demo.benchmark.runner.cases", lambda *asked: [every(*asked)[at] for at in keep])
    return benchmarks.run(options, config, quiet)


@pytest.mark.processes
def test_training_lora_and_qlora_gives_sane_figures(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = measured(benchmarks, BenchmarkConfig(steps=2), monkeypatch, 0, 1)
    assert (result["state"], result["error"]) == ("finished", "")
    lora, qlora = result["rows"]
    for row in (lora, qlora):
        phases = [row[f"{name}_peak_bytes"] for name in ("load", "forward", "backward", "optimizer")]
        assert row["fits"] and row["peak_bytes"] >= max(phases) and min(phases) > 100 << 20
        assert 0 < row["step_median_seconds"] <= row["step_max_seconds"] and "step_p95_seconds" not in row
        assert row["tokens_per_second"] == pytest.approx(2 * 64 / row["step_median_seconds"])
        assert 0 < row["flops_share"] < 1
        assert row["trainable_parameters"] == 2 * 4 * (128 + 128 + 2 * (128 + 64) + 128 + 128)
        assert row["steps"] == 2
    assert "torch" in result["machine"] and "CPU" in machine(result)
    assert benchmarks.get(result["id"]) == result
    assert len(table(result).rows) == 2 and len(figures(result)) == 3
    same = comparison(result, result)
    assert {row[-1] for row in same.rows} == {"1.00"} and len(same.rows) == 6


@pytest.mark.processes
@pytest.mark.usefixtures("unusable_gpu")
def test_nothing_is_measured_where_torch_cannot_use_the_gpu(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match=r"^device: driver 470\.1 lists NVIDIA T4, and torch .* cannot use it"):
        measured(benchmarks, BenchmarkConfig(steps=2), monkeypatch, 0)


@pytest.mark.processes
def test_inference_times_a_column_beside_the_librarys_own_loop(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BenchmarkConfig(kind="inference", prompt_tokens="8,40000", batch_sizes="2", new_tokens=4)
    result = measured(benchmarks, options, monkeypatch, 1)
    row, too_long = result["rows"]
    assert (row["case"], row["batch"], row["repeats"], row["fits"]) == ("adapter", 2, 5, True)
    assert 0 < row["tpot_median_seconds"] <= row["tpot_p95_seconds"]
    assert row["tokens_per_second"] == pytest.approx(2 / row["tpot_median_seconds"])
    assert row["bandwidth_bytes_per_second"] > 0 and row["read_bytes"] <= row["model_bytes"]
    assert row["over_generate"] > 0 and row["decode"].startswith("eager (")
    assert not too_long["fits"] and "context of 32768 tokens is too short" in too_long["error"]
    assert "does not fit: 40000 tokens, batch 2" in table(result).rows[1][1]


@pytest.mark.processes
def test_the_frontier_is_where_real_steps_stop_fitting(benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of what Python and its libraries take and half as much again: some rows fit, others do not."""
    options = BenchmarkConfig(kind="frontier", gpu_memory="0.8GB")
    row = measured(benchmarks, options, monkeypatch, 0, config=TINY.changed(max_length=512))["rows"][0]
    assert row["longest_row"] > 0 and row["largest_batch"] > 0 and row["capped"] == []
    assert all(one["fits"] == (one["peak_bytes"] <= row["budget_bytes"]) for one in row["tries"])
    fitted, failed = ([one for one in row["tries"] if one["fits"] is fits] for fits in (True, False))
    assert (
        max(one["tokens"] for one in fitted) == row["longest_row"] < min(o["tokens"] for o in failed if o["rows"] == 1)
    )
    assert max(one["rows"] for one in fitted) == row["largest_batch"] < max(one["rows"] for one in failed)


@pytest.mark.processes
def test_a_stop_ends_the_case_that_is_measured_and_keeps_the_rows(benchmarks: Benchmarks) -> None:
    name = benchmarks.start(BenchmarkConfig(kind="rank", ranks="2,4", targets="attention"), TINY)
    with pytest.raises(DeviceBusy, match="benchmark"):
        benchmarks.lease.acquire("chat")
    with pytest.raises(RunError, match="still being measured"):
        benchmarks.delete(name)
    benchmarks.stop(name)
    deadline = time.monotonic() + 60
    while benchmarks.lease.holder() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert benchmarks.get(name)["state"] == "stopped"
    with pytest.raises(RunError, match="it has ended; there is nothing to stop"):
        benchmarks.stop(name)
    benchmarks.delete(name)
    assert benchmarks.names() == []


@pytest.mark.processes
def test_a_case_that_outlives_who_measures_it_keeps_both_locks(benchmarks: Benchmarks) -> None:
    name = benchmarks.start(BenchmarkConfig(kind="rank", ranks="2", targets="attention"), TINY)
    parent = _process(psutil.Process(), str(benchmarks.path(name)))
    case = _process(parent, "qlora_demo.ml.measure")
    case.suspend()
    parent.kill()
    with suppress(psutil.NoSuchProcess):
        parent.wait(30)
    assert benchmarks.lease.holder() == f"benchmark {name}"
    assert is_held(benchmarks.path(name) / "lock")
    with pytest.raises(DeviceBusy, match="benchmark"):
        benchmarks.lease.acquire("training")
    case.kill()
    _until(lambda: not benchmarks.lease.holder() and not is_held(benchmarks.path(name) / "lock"))
    assert "ended without reporting an error" in benchmarks.get(name)["error"]


def _process(parent: psutil.Process, word: str) -> psutil.Process:
    """The child that has a word on its command line, once there is one."""
    found: list[psutil.Process] = []

    def there() -> bool:
        found.extend(child for child in parent.children() if word in child.cmdline())
        return bool(found)

    _until(there)
    return found[0]


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.processes
def test_a_wrong_request_names_itself_and_a_broken_process_its_log(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="'q_projj' is no layer that can be adapted"):
        benchmarks.run(BenchmarkConfig(kind="rank", ranks="2", targets="q_projj"), TINY, quiet)
    [kept] = benchmarks.all()
    assert kept["state"] == "failed" and "q_projj" in kept["error"]


def test_one_whose_process_died_reads_as_failed(benchmarks: Benchmarks) -> None:
    name = abandoned(benchmarks, BenchmarkConfig(), TINY)
    assert benchmarks.get(name)["state"] == "failed"
    assert "ended without reporting an error" in benchmarks.get(name)["error"]


def test_one_that_begins_never_looks_dead_and_none_appears_while_the_device_is_busy(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @contextmanager
    def watched(parent: Path, label: str) -> Iterator[tuple[str, Path]]:
        with new_folder(parent, label) as made:
            yield made
        seen.extend(one["state"] for one in benchmarks.all())

    monkeypatch.setattr("qlora_demo.benchmark.runner.new_folder", watched)
    monkeypatch.setattr("qlora_demo.gpu._EXIT_SECONDS", 0)
    with benchmarks.new(BenchmarkConfig(), TINY) as (name, _):
        assert seen == ["starting"] and benchmarks.lease.holder() == f"benchmark {name}"
        with pytest.raises(DeviceBusy, match=name):
            benchmarks.start(BenchmarkConfig(), TINY)
    assert benchmarks.names() == [name] and seen == ["starting"]


def test_names_lead_nowhere_else_and_what_cannot_be_read_is_left_out(benchmarks: Benchmarks) -> None:
    name = abandoned(benchmarks, BenchmarkConfig(), TINY)
    (benchmarks.path(name) / "result.json").write_text("{", "utf-8")
    assert benchmarks.all() == []
    for wrong in ("../home", "x", name + "/.."):
        with pytest.raises(RunError, match="no such benchmark"):
            benchmarks.path(wrong)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[]", "the whole"),
        ("{", "cannot be read"),
        ('{"kind": ["training"]}', "kind"),
        ('{"kind": "training"}', "rows"),
        ('{"kind": "training", "rows": [1]}', r"rows\[0\]"),
        ('{"kind": "training", "rows": [], "config": {"model": "m", "target_modules": "mlp"}}', r"config\.r"),
        ('{"kind": "training", "rows": [{"case": "a", "peak_bytes": "4"}]}', r"rows\[0\]\.peak_bytes"),
        ('{"kind": "training", "rows": [{"case": "a", "peak_bytes": NaN}]}', r"rows\[0\]\.peak_bytes"),
        ('{"kind": "inference", "rows": [], "options": {"run": []}}', r"options\.run"),
        (r'{"kind": "inference", "rows": [], "options": {"variants": "\ud800"}}', "options is not"),
        ('{"kind": "training", "rows": [], "config": {"optim": []}}', "config is not"),
        ('{"kind": "training", "rows": [], "cases": "all"}', "cases"),
        ('{"kind": "training", "rows": [], "again": []}', "again"),
        ('{"kind": "training", "rows": [], "again": {"step_median_seconds": "1"}}', r"again\.step_median_seconds"),
        ('{"kind": "rank", "rows": [{"case": "r 8, mlp", "step_median_seconds": ""}]}', r"rows\[0\]\.step_median"),
        ('{"kind": "training", "rows": [{"case": "a", "shape": {"hidden_size": []}}]}', r"rows\[0\]\.shape"),
        ('{"kind": "training", "rows": [{"case": "a", "checkpointing": 1}]}', r"rows\[0\]\.checkpointing"),
        ('{"kind": "training", "rows": [{"case": "a", "fp16": 1}]}', r"rows\[0\]\.fp16"),
        ('{"kind": "inference", "rows": [{"case": "a", "read_bytes": null}]}', r"rows\[0\]\.read_bytes"),
        ('{"kind": "training", "rows": [{"case": "a", "score": {"exact_match": 2}}]}', r"rows\[0\]\.score\.exact"),
        ('{"kind": "training", "rows": [{"case": "a", "score": {"rows": 1.5}}]}', r"rows\[0\]\.score\.rows"),
        ('{"kind": "training", "rows": [{"case": "a", "score": 1}]}', r"rows\[0\]\.score"),
        ('{"kind": "rank", "rows": [{"case": "a"}]}', r"rows\[0\]\.case"),
        ('{"kind": "inference", "rows": [{"case": "a", "batch": 1}]}', r"rows\[0\]\.batch"),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_its_name(text: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "sent.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"sent\.json:? {field}"):
        read_result_file(path)


def test_every_column_s_share_is_of_the_median_process_s_bandwidth(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for three columns' processes, of which one meets twice the bandwidth and has most of the rows."""
    row = '{"row": {"fits": true, "read_bytes": 10, "tpot_median_seconds": 1, "bandwidth_bytes_per_second": %s}}\\n'
    cases = "*'\"base\"}'*) found=20 ;; *'\"merged\"}'*) found=21 ;; *) found=40; printf '" + row + "' 40 ;;"
    monkeypatch.setattr(
        "sys.executable", str(_script(benchmarks.root, f"case $asked in {cases} esac\nprintf '{row}' $found"))
    )
    options = BenchmarkConfig(kind="inference", variants="base,adapter,merged")
    result = benchmarks.run(options, TINY, quiet)
    assert [one["bandwidth_bytes_per_second"] for one in result["rows"]] == [20, 40, 40, 21]
    at = table(result).head.index("share of bandwidth")
    assert {cells[at] for cells in table(result).rows} == {"47.6%"}


def told(benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, config: TrainConfig, **options: Any) -> Any:
    """A benchmark's result, what it reported and the cases it measured, by a stand-in whose n-th case has a step of n
    seconds, the first having no room."""
    asked: list[Case] = []
    said: list[str] = []

    def stand_in(folder: Path, options: BenchmarkConfig, case: Case, *_: Any) -> Iterator[Any]:
        asked.append(case)
        fits = len(asked) > 1
        yield {"row": {"fits": fits} | ({"step_median_seconds": float(len(asked))} if fits else {})}

    monkeypatch.setattr("qlora_demo.benchmark.runner.measure_case", stand_in)
    return benchmarks.run(BenchmarkConfig(**options), config, lambda progress: said.append(progress.text)), said, asked


def test_the_first_case_that_was_trained_is_trained_once_more_at_the_end(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = TINY.changed(score_rows=8)
    result, said, asked = told(benchmarks, monkeypatch, scored, kind="rank", ranks="2,4,8", targets="mlp")
    assert [row["case"] for row in result["rows"]] == ["r 2, mlp", "r 4, mlp", "r 8, mlp"]
    assert result["again"] == {"case": "r 4, mlp", "step_median_seconds": 4.0}
    assert said == ["r 2, mlp (1 of 3)", "r 4, mlp (2 of 3)", "r 8, mlp (3 of 3)", "r 4, mlp, once more (4 of 4)"]
    assert asked[3].config == asked[1].config.changed(score_rows=1)
    assert result["cases"] == 3 and benchmarks.get(result["id"]) == result


@pytest.mark.parametrize(
    "options", [{"kind": "rank", "ranks": "2,4", "targets": "mlp"}, {"kind": "rank", "ranks": "2"}]
)
def test_of_few_cases_none_is_trained_twice(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    result, _, asked = told(benchmarks, monkeypatch, TINY, **{"targets": "mlp"} | options)
    assert len(asked) == len(result["rows"]) < 3 and "again" not in result


def test_a_process_that_the_system_killed_had_no_room(benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(_script(benchmarks.root, "kill -9 $$")))
    row = benchmarks.run(BenchmarkConfig(kind="rank", ranks="2", targets="mlp"), TINY, quiet)["rows"][0]
    assert row == {"case": "r 2, mlp", "fits": False, "error": "the system killed the process: out of memory"}


def _script(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nasked=$(cat)\n{text}\n", "utf-8")
    path.chmod(0o755)
    return path


def test_the_result_of_a_run_is_json_that_the_diff_takes(benchmarks: Benchmarks, tmp_path: Path) -> None:
    row = {"case": "a", "fits": True, "peak_bytes": 4, "step_median_seconds": 2.0, "tokens_per_second": 1.0}
    older = {"kind": "training", "rows": [row]}
    newer = {"kind": "training", "rows": [row | {"peak_bytes": 2}, row | {"case": "other"}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(older), "utf-8")
    found = comparison(read_result_file(path), newer)
    assert [cells[-1] for cells in found.rows] == ["0.50", "1.00", "1.00"]
    assert comparison(older, {"kind": "frontier", "rows": []}).rows == ()
