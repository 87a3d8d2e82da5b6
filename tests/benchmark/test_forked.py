"""Benchmarks forked from one process measure what those started afresh do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.readme import ROOT


@pytest.mark.processes
def test_each_case_is_a_fork_and_its_rows_are_in_the_file(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.forked", "inference", "--seconds", "200", "--out", str(tmp_path)]
    options = [
        "--model=shape:tiny",
        "--variants=base,adapter",
        "--prompt-tokens=8",
        "--batch-sizes=1",
        "--new-tokens=2",
    ]
    done = subprocess.run([*command, *options, "--new-tokens=2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "inference_gpu.json").read_text("utf-8"))
    assert (result["state"], [row["case"] for row in result["rows"]]) == ("finished", ["base", "adapter"])
    assert all(row["fits"] and row["tpot_median_seconds"] > 0 for row in result["rows"])
    assert result["options"]["kind"] == "inference" and "torch" in result["machine"]
