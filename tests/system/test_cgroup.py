"""What a container may have, read from cgroups of either version; the files are laid out as a kernel does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qlora_demo.gpu import device_info
from qlora_demo.ml.device import free_and_total
from qlora_demo.system import cgroup
from qlora_demo.units import GIB

SECOND = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/memory.max": f"{GIB}\n",
    "sys/fs/cgroup/outer/memory.current": f"{3 * GIB // 4}\n",
    "sys/fs/cgroup/outer/memory.stat": f"file 9\ninactive_file {GIB // 2}\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "7\n",
    "sys/fs/cgroup/outer/cpu.max": "max 100000\n",
    "sys/fs/cgroup/outer/inner/cpu.max": "150000 100000\n",
}
FIRST = {
    "proc/self/cgroup": "4:memory:/docker/12ab\n1:cpu,cpuacct:/docker/12ab\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB // 4}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 9\ntotal_inactive_file {GIB // 2}\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
NO_LIMIT = {
    "proc/self/cgroup": "4:memory:/\n1:cpu:/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "7\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


def laid_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


@pytest.mark.parametrize("files", [SECOND, FIRST], ids=["second version", "first version"])
def test_what_a_container_may_have_is_less_than_the_machine_s(files: dict[str, str], tmp_path: Path) -> None:
    root = laid_out(tmp_path, files)
    assert cgroup.free_and_total(root) == (3 * GIB // 4, GIB)
    assert cgroup.processors(root) == 1


@pytest.mark.parametrize("files", [{}, NO_LIMIT], ids=["no cgroups", "no limit"])
def test_without_a_limit_it_is_all_of_the_machine_s(files: dict[str, str], tmp_path: Path) -> None:
    root = laid_out(tmp_path, files)
    free, total = cgroup.free_and_total(root)
    assert 0 < free < total == psutil.virtual_memory().total
    if hasattr(os, "sched_getaffinity"):
        assert cgroup.processors(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("line", ["0::/", "nonsense", ""])
def test_values_that_make_no_sense_limit_nothing(line: str, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": line, "sys/fs/cgroup/cpu.max": "100000 0", "sys/fs/cgroup/memory.max": "max"}
    root = laid_out(tmp_path, files)
    assert cgroup.processors(root) == cgroup.processors(tmp_path / "nowhere")
    assert cgroup.free_and_total(root)[1] == cgroup.free_and_total(tmp_path / "nowhere")[1]


def test_the_device_and_the_models_room_are_what_the_container_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in (cgroup.free_and_total, cgroup.processors):
        monkeypatch.setattr(asked, "__defaults__", (laid_out(tmp_path, SECOND),))
    device = device_info()
    assert (device.free_bytes, device.total_bytes) == free_and_total() == (3 * GIB // 4, GIB)
    assert device.name.startswith("CPU, 1 core (")


_THREADS = """
from qlora_demo.system import cgroup
cgroup.processors = lambda: 1
from qlora_demo.ml.load import torch
print(torch.get_num_threads())
"""


@pytest.mark.processes
def test_models_use_no_more_threads_than_the_container_may_run_at_once() -> None:
    environ = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", _THREADS]
    assert subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip() == "1"
