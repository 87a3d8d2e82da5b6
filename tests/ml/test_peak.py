"""Peaks are of the stretch that is asked about, and what a load frees goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import torch

from qlora_demo.ml.peak import give_back, nothing_hoarded, peak_memory_bytes, reset_peak

pytestmark = pytest.mark.slow

LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux forgets a peak, and only glibc is told to give back"
)
MIB = 1 << 20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def tell() -> None:
    """Print what a load leaves behind, within the block and outside of it."""
    with nothing_hoarded():
        print(left_of_a_load())
    print(left_of_a_load())


def left_of_a_load() -> int:
    """Bytes that stay resident of 300 MiB, of which every tenth is kept as a model's weights are."""
    give_back()
    before = resident()
    blocks = [torch.ones(MIB, dtype=torch.uint8) for _ in range(300)]
    kept = blocks[::10]
    del blocks
    return resident() - before - len(kept) * MIB


@LINUX
def test_what_a_load_frees_goes_back_and_is_kept_again_afterwards() -> None:
    """In a fresh process: this one's heap may have room from the tests before."""
    command = [sys.executable, "-c", "from tests.ml.test_peak import tell; tell()"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    inside, outside = map(int, told.split())
    assert inside < 40 * MIB
    assert outside > 150 * MIB


@LINUX
def test_a_peak_is_that_of_the_stretch_since_the_reset() -> None:
    with nothing_hoarded():
        block = torch.ones(200 * MIB, dtype=torch.uint8)
        del block
        high = peak_memory_bytes()
        reset_peak()
        assert high - peak_memory_bytes() > 150 * MIB
        assert peak_memory_bytes() <= resident() + 20 * MIB
