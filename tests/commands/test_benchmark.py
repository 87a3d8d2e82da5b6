"""The benchmark command: what needs no measuring, and what is refused before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.runner import Benchmarks, read_result_file
from qlora_demo.cli import main
from qlora_demo.commands.benchmark import print_benchmark
from qlora_demo.config import TrainConfig
from qlora_demo.gpu import Lease
from qlora_demo.presets import ARTICLE, LAPTOP
from qlora_demo.settings import Settings
from tests.abandoned import abandoned

ROW = {"case": "a", "fits": True, "peak_bytes": 4, "step_median_seconds": 2.0, "tokens_per_second": 1.0}


def told(capsys: pytest.CaptureFixture[str], *command: str) -> object:
    assert main(["benchmark", *command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_show_and_delete(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "list") == []
    store = Benchmarks(Settings(home), Lease(home))
    name = abandoned(store, BenchmarkConfig(kind="rank"), TrainConfig(model="shape:tiny"))
    assert told(capsys, "list") == [{"id": name, "kind": "rank", "state": "failed", "error": store.get(name)["error"]}]
    assert told(capsys, "show", name) == store.get(name)
    assert told(capsys, "delete", name) == {"id": name, "state": "deleted"}
    assert store.names() == []


def test_two_files_are_laid_side_by_side(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, speed in (("a", 1.0), ("b", 3.0)):
        document = {"kind": "training", "rows": [ROW | {"tokens_per_second": speed}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(document), "utf-8")
    found = told(capsys, "diff", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert isinstance(found, dict)
    assert found["figures"][-1] == {"case": "a", "figure": "tokens/s", "first": "1.0", "second": "3.0", "ratio": "3.00"}


def test_figures_are_printed_with_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "id": "one",
        "kind": "training",
        "state": "finished",
        "error": "",
        "rows": [ROW | {"peak_bytes": 3 << 30}],
    }
    print_benchmark(result | {"options": {}, "config": TrainConfig().model_dump(), "method": "so", "machine": {}})
    printed = capsys.readouterr().out
    assert printed.startswith("one: finished\n")
    assert "\na\n  peak, load: –\n" in printed
    assert "\nso Needed on the device is the peak" in printed
    assert {"  peak: 3.0 GiB", "  step, median: 2.0 s", "  tokens/s: 1.0"} <= set(printed.splitlines())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["training", "--steps", "1"], "steps: '1' is not allowed"),
        (["rank", "--ranks", "8,many"], "ranks: '8,many' is not allowed"),
        (["frontier", "--gpu-memory", "lots"], "gpu_memory: 'lots' is not allowed"),
        (["inference", "--prompt-tokens", "0"], "prompt_tokens: '0' is not allowed"),
        (["inference", "--variants", "basis"], "variants: 'basis' is not known"),
        (["training", "--model", "shape:none"], "model: 'shape:none' is no shape"),
        (["inference", "--run", "nothing"], "adapter 'nothing'"),
        (["show", "20260101-000000-rank-0000"], "no such benchmark"),
        (["show"], "benchmark show: takes 1 name, 0 were given"),
        (["diff", "/nowhere/a.json", "/nowhere/b.json"], "result: a.json cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    home: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *command]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert Benchmarks(Settings(home), Lease(home)).names() == []


def test_a_place_for_the_result_is_made_before_the_work_and_a_failed_write_names_the_result(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Benchmarks, *_: object) -> dict[str, object]:
        assert out.parent.is_dir()
        if full:
            out.mkdir()
        return {"id": "the-id"}

    monkeypatch.setattr(Benchmarks, "run", run)
    out, full = tmp_path / "new" / "result.json", False
    command = ["benchmark", "training", "--model", "shape:tiny", "--json", "--out", str(out)]
    assert main(command) == 0
    assert json.loads(out.read_text("utf-8")) == json.loads(capsys.readouterr().out)
    out.unlink()
    full = True
    assert main(command) == 1
    assert capsys.readouterr().err.endswith("the result is kept, see `benchmark show the-id`\n")
    assert main(command) == 2
    assert f"out: {out} is a folder; name a file in it" in capsys.readouterr().err


def test_a_result_keeps_what_was_asked(home: Path) -> None:
    store = Benchmarks(Settings(home), Lease(home))
    name = abandoned(store, BenchmarkConfig(kind="frontier", gpu_memory="8GB"), TrainConfig(model="shape:tiny", r=4))
    found = read_result_file(store.path(name) / "result.json")
    assert (found["options"]["gpu_memory"], found["config"]["r"], found["cases"]) == ("8GB", 4, 4)
    assert "Real training steps" in found["method"]


def test_help_tells_what_the_command_takes_where_nothing_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"default {ARTICLE.model} on cuda, {LAPTOP.model} on cpu)" in told
    assert "default 4 on cuda, 2 on cpu)" in told
    assert f"default {ARTICLE.r})" in told
