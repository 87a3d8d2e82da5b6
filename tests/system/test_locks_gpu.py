"""A lock lives as long as its last holder; a home's device has one holder at a time."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_demo.errors import DeviceBusy, RunError
from qlora_demo.gpu import Lease, bf16_in_words, device_info, gpu_count
from qlora_demo.records import DeviceInfo
from qlora_demo.system.locks import HeldLock, is_held, read_note


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A lock's file, which does not exist yet."""
    return tmp_path / "lock"


@pytest.fixture
def lock(path: Path) -> Iterator[HeldLock]:
    """The lock, taken; released at the end where the test has not."""
    held = HeldLock.acquire(path, {"by": "me"})
    assert held is not None
    yield held
    if os.path.exists(f"/proc/self/fd/{held.fd}"):  # noqa: PTH110 - it is a descriptor, not a file
        held.release()


def test_a_lock_that_nobody_took_is_free(path: Path) -> None:
    assert not is_held(path)
    assert read_note(path) == {}


def test_a_folder_that_is_gone_is_not_made_again_for_its_lock(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^gone: it was deleted meanwhile; choose another or start a new one$"):
        HeldLock.acquire(tmp_path / "gone" / "lock", {})
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_shared_is_held_until_the_last_lets_go(path: Path) -> None:
    first, second = (HeldLock.acquire(path, {}, shared=True) for _ in range(2))
    assert first is not None and second is not None
    assert HeldLock.acquire(path, {}, patience=0) is None
    first.release()
    assert is_held(path, shared=True) and not is_held(path)
    second.release()
    assert not is_held(path, shared=True)


def test_a_lock_is_exclusive_within_one_process(path: Path, lock: HeldLock) -> None:
    assert is_held(path)
    assert HeldLock.acquire(path, {"by": "another"}, patience=0) is None
    assert read_note(path) == {"by": "me"}


def test_a_refused_attempt_leaves_no_open_file(path: Path, lock: HeldLock) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - descriptors, not files
    assert HeldLock.acquire(path, {}, patience=0) is None
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_released_lock_can_be_taken_again(path: Path, lock: HeldLock) -> None:
    lock.release()
    assert not is_held(path)
    again = HeldLock.acquire(path, {"by": "the next"})
    assert again is not None
    assert read_note(path) == {"by": "the next"}
    again.release()


def test_a_child_that_inherits_the_lock_keeps_it_until_it_is_killed(path: Path, lock: HeldLock) -> None:
    with subprocess.Popen(["sleep", "60"], pass_fds=(lock.fd,)) as child:
        try:
            lock.release()
            held_by_the_child = is_held(path)
        finally:
            child.kill()
    assert held_by_the_child
    assert not is_held(path)


def test_a_child_that_does_not_inherit_the_lock_does_not_keep_it(path: Path, lock: HeldLock) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            lock.release()
            assert not is_held(path)
        finally:
            child.kill()


def test_a_probe_in_progress_does_not_refuse_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    pauses = []
    with path.open("rb") as probe:

        def probe_ends(pause: float) -> None:
            pauses.append(pause)
            fcntl.flock(probe, fcntl.LOCK_UN)

        fcntl.flock(probe, fcntl.LOCK_SH)
        monkeypatch.setattr("qlora_demo.system.locks.time.sleep", probe_ends)
        held = HeldLock.acquire(path, {})
    assert held is not None
    assert len(pauses) == 1
    held.release()


def test_two_probes_do_not_take_each_other_for_a_holder(path: Path) -> None:
    path.touch()
    with path.open("rb") as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        assert not is_held(path)


def test_a_shorter_note_replaces_a_longer_one(path: Path, lock: HeldLock) -> None:
    lock.annotate({"by": "somebody with a much longer name"})
    lock.annotate({"by": "x"})
    assert read_note(path) == {"by": "x"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_note_that_cannot_be_read_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert read_note(tmp_path / "lock") == {}


def test_a_busy_device_is_refused_with_the_name_of_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.gpu._EXIT_SECONDS", 0.0)
    held = Lease(tmp_path).acquire("training", "run-7")
    with pytest.raises(DeviceBusy, match=r"^device: held by training run-7; wait for it or stop it$"):
        Lease(tmp_path).acquire("chat")
    held.release()


def test_a_holder_that_is_just_leaving_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = Lease(tmp_path).acquire("training")
    monkeypatch.setattr("qlora_demo.system.locks.time.sleep", lambda _: leaving.release())
    held = Lease(tmp_path).acquire("chat")
    assert Lease(tmp_path).holder() == "chat"
    held.release()


def test_the_holder_of_the_device_is_told_in_words(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    assert lease.holder() == ""
    held = lease.acquire("chat")
    assert lease.holder() == "chat"
    held.annotate({"purpose": "merge", "detail": "run-7"})
    assert lease.holder() == "merge run-7"
    held.annotate({})
    assert lease.holder() == "another process"
    held.release()
    assert lease.holder() == ""


def test_what_the_device_is_held_for_is_told(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    held = lease.acquire("benchmark", "of ranks")
    assert lease.is_held_for("benchmark") and not lease.is_held_for("chat")
    held.release()
    assert not lease.is_held_for("benchmark")


def test_two_homes_have_a_device_each(tmp_path: Path) -> None:
    first, second = (Lease(tmp_path / name).acquire("chat") for name in ("a", "b"))
    assert first.fd != second.fd
    first.release()
    second.release()


def test_the_device_has_a_name_and_plausible_memory() -> None:
    device = device_info()
    assert device.kind in ("cuda", "cpu")
    assert device.name
    assert 0 < device.free_bytes <= device.total_bytes
    assert 1 << 28 < device.total_bytes < 1 << 45


def test_the_first_gpu_that_nvidia_smi_lists_is_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 1000, 2000'; echo 'NVIDIA T4, 1, 2'")
    assert device_info() == DeviceInfo("cuda", "NVIDIA H200", 1000 << 20, 2000 << 20)


def test_the_first_gpu_that_may_be_seen_is_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, 'case "$*" in *--id=1) echo "NVIDIA T4, 1, 2";; *) exit 9;; esac')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert device_info().name == "NVIDIA T4"


def test_a_gpu_that_is_hidden_is_not_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 1000, 2000'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_info().kind == "cpu"


@pytest.mark.parametrize("script", ["exit 9", "true", "echo No devices were found", "echo 'X, [N/A], [N/A]'"])
def test_without_a_usable_gpu_the_processor_is_the_device(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    assert device_info().kind == "cpu"


@pytest.mark.parametrize(
    ("script", "visible", "count"),
    [
        ("echo 0; echo 1; echo 2", None, 3),
        ("echo 0; echo 1; echo 2", "", 0),
        ("echo 0; echo 1; echo 2", "1,-1,0", 1),
        ('case "$*" in *--id=*) echo 2;; *) echo 0; echo 1; echo 2;; esac', "2,0", 2),
        ("echo 0", "0,1", 1),
        ("echo 0; echo 1", "-1", 0),
        ('case "$*" in *--query-gpu=index*) echo 0; echo 1;; esac', "1", 1),
        ("echo No devices were found", None, 0),
        ("exit 9", None, 0),
    ],
)
def test_the_gpus_that_may_be_seen_are_counted(
    script: str, visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_without_nvidia_smi_no_gpu_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_count() == 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 9.0", "yes (compute capability 9.0)"),
        ("echo 7.5", "no, fp16 is used instead (compute capability 7.5)"),
        ("exit 9", "yes, on the processor"),
    ],
)
def test_whether_there_is_bf16_is_told_in_words(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    assert bf16_in_words() == words


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
