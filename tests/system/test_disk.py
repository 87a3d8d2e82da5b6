"""Room on disk, and files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qlora_demo.errors import ConfigError, RunError, WorkError
from qlora_demo.system.disk import (
    clear_left,
    copy_whole,
    draft_folder,
    folder_bytes,
    new_folder,
    read_object,
    remove_folder,
    require_free,
    write_atomically,
)
from tests.conftest import Disk


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, None])
def test_what_is_no_object_reads_as_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "note.json").write_bytes(content)
    assert read_object(tmp_path / "note.json") == {}
    (tmp_path / "whole.json").write_text('{"a": 1}', "utf-8")
    (tmp_path / "link.json").symlink_to("whole.json")
    assert (read_object(tmp_path / "whole.json"), read_object(tmp_path / "link.json")) == ({"a": 1}, {})


def test_a_folder_that_is_not_there_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    require_free(tmp_path / "a" / "b", 1 << 10, "the merged model")
    with pytest.raises(WorkError) as error:
        require_free(tmp_path / "a" / "b", 1 << 60, "the merged model")
    assert str(error.value).startswith(f"{tmp_path}/a/b: the merged model needs 1073741824.0 GiB there and ")
    assert str(error.value).endswith(" are free; remove files there or name a folder on another disk")
    assert _left(tmp_path) == []


def test_a_relative_folder_is_measured_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[Path, Any] = {}
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.setdefault(Path(path).resolve(), free))
    require_free(Path("new"), 1, "it")
    assert list(asked) == [tmp_path.resolve()]


@pytest.mark.parametrize("below", ["", "out/new"])
def test_room_is_asked_of_the_disk_the_folder_is_on(small_disk: Path, below: str) -> None:
    require_free(small_disk / below, 1 << 10, "the adapter")
    with pytest.raises(WorkError, match=rf"{below}: the adapter needs 1\.5 MiB there and 256 KiB are free"):
        require_free(small_disk / below, 3 << 19, "the adapter")


def test_a_folder_s_bytes_are_those_of_its_files_and_not_of_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    inside = tmp_path / "folder" / "deep"
    inside.mkdir(parents=True)
    (inside / "a").write_bytes(b"x" * 10)
    (inside.parent / ".b").write_bytes(b"x" * 5)
    (inside / "link").symlink_to(tmp_path / "big")
    assert folder_bytes(inside.parent) == 15
    assert folder_bytes(inside / "a") == 10


def test_a_folder_that_vanishes_while_it_is_measured_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_bytes(b"x" * 10)
    gone, scandir = tmp_path / "checkpoint-1", os.scandir
    gone.mkdir()

    def listed(path: Any) -> Any:
        if Path(path) == gone:
            gone.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    assert folder_bytes(tmp_path) == 10
    assert not gone.exists()


def test_a_draft_brings_nothing_back_that_was_deleted(tmp_path: Path) -> None:
    out = tmp_path / "run" / "exports" / "merged"
    with pytest.raises(RunError, match=f"^{out}: {tmp_path}/run is gone; choose another run"), draft_folder(out):
        pytest.fail("the block ran")
    assert _left(tmp_path) == []


def test_a_finished_draft_becomes_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with draft_folder(out) as draft:
        assert draft == tmp_path / "new" / ".out.new"
        (draft / "sub").mkdir()
        (draft / "sub" / "file").write_text("whole", "utf-8")
        assert not out.exists()
    assert (out / "sub" / "file").read_text("utf-8") == "whole"
    assert _left(out.parent) == ["out"]


def test_files_are_on_the_disk_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "out").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with draft_folder(tmp_path / "out") as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "file").touch()
        (draft / "other").touch()
    assert sorted(synced) == [("file", False), ("other", False)]


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_what_exists_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    make: dict[str, Callable[[], None]] = {"folder": out.mkdir, "file": out.touch}
    make.get(kind, lambda: out.symlink_to("nowhere"))()
    message = f"^out: {out} exists already; name a new folder or remove it$"
    with pytest.raises(ConfigError, match=message) as error, draft_folder(out):
        pytest.fail("the block ran")
    assert (error.value.field, _left(tmp_path)) == ("out", ["out"])


def test_a_stale_draft_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new" / "half").touch()
    with draft_folder(tmp_path / "out") as draft:
        (draft / "whole").touch()
    assert _left(tmp_path / "out") == ["whole"]


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), ValueError("wrong"), WorkError("told already"), SystemExit(1)]
)
def test_what_fails_leaves_nothing_and_is_raised_as_it_is(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)) as error, draft_folder(tmp_path / "out") as draft:
        (draft / "half").touch()
        raise failure
    assert error.value is failure
    assert _left(tmp_path) == []


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_as_one_in_whatever_class_it_comes(tmp_path: Path, failure: Exception) -> None:
    message = f"^{tmp_path}/out: the disk is full and nothing was kept; remove files there or name a folder on another"
    with pytest.raises(WorkError, match=message), draft_folder(tmp_path / "out") as draft:
        (draft / "half").touch()
        raise failure
    assert _left(tmp_path) == []


def test_a_disk_that_is_full_at_the_last_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WorkError, match="the disk is full"), draft_folder(tmp_path / "out") as draft:
        (draft / "file").touch()
    assert _left(tmp_path) == []


@pytest.mark.parametrize(("out", "reason"), [("file/out", "Not a directory"), ("x" * 300, "File name too long")])
def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path, out: str, reason: str) -> None:
    (tmp_path / "file").touch()
    message = rf"^{tmp_path}/{out}: not written, nothing was kept \(\[Errno \d+\] {reason}"
    with pytest.raises(WorkError, match=message), draft_folder(tmp_path / out):
        pytest.fail("the block ran")


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="not written, nothing was kept"), draft_folder(tmp_path / "out") as draft:
        (draft / "ours").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert (_left(tmp_path), _left(tmp_path / "out")) == (["out"], ["theirs"])


@pytest.fixture
def small_disk(disk: Disk) -> Path:
    return disk(256)


def test_a_disk_that_is_really_full_is_told_as_one(small_disk: Path) -> None:
    with pytest.raises(WorkError, match="the disk is full"), draft_folder(small_disk / "out") as draft:
        (draft / "weights").write_bytes(b"x" * (1 << 20))
    assert _left(small_disk) == []


def test_weights_that_do_not_fit_are_told_as_a_full_disk(small_disk: Path) -> None:
    weights = {"w": np.zeros(1 << 20, dtype=np.uint8)}
    with pytest.raises(WorkError, match="the disk is full"), draft_folder(small_disk / "out") as draft:
        save_file(weights, draft / "model.safetensors")
    assert _left(small_disk) == []


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from qlora_demo.system.disk import draft_folder
with draft_folder(Path({str(tmp_path)!r}) / "out") as draft:
    (draft / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert _left(tmp_path) == [".out.new"]
    with draft_folder(tmp_path / "out") as draft:
        (draft / "whole").touch()
    assert (_left(tmp_path), _left(tmp_path / "out")) == (["out"], ["whole"])


def test_a_new_folder_is_there_when_it_is_whole_and_not_at_all_where_it_fails(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with new_folder(runs, "one") as (name, draft):
        (draft / "file").touch()
        assert not (runs / name).exists()
    with pytest.raises(WorkError, match=f"^{runs}: cannot be written: no"), new_folder(runs, "two"):
        raise OSError("no")
    assert _left(runs) == [name]
    assert _left(runs / name) == ["file"]


def test_folders_made_in_one_second_have_names_of_their_own_whatever_chance_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda how: "now")
    drawn = iter(["aaaa", "aaaa", "bbbb", "aaaa", "bbbb", "cccc"])
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(drawn))
    with new_folder(tmp_path, "run") as (first, draft), new_folder(tmp_path, "run") as (second, _):
        (draft / "whole").touch()
    with new_folder(tmp_path, "run") as (third, _):
        assert _left(tmp_path) == [f".new-{third}", first, second]
    assert [first, second, third] == ["now-run-aaaa", "now-run-bbbb", "now-run-cccc"]
    assert _left(tmp_path / first) == ["whole"]


def test_what_kills_left_is_cleared_unless_somebody_is_at_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    clear_left(runs)
    for name in (".new-one", ".deleted-two", "three", ".other"):
        (runs / name / "deep").mkdir(parents=True)
    with new_folder(runs, "four") as (four, _):
        clear_left(runs)
        assert _left(runs) == sorted([".deleted-two", f".new-{four}", ".new-one", ".other", "three"])
    clear_left(runs)
    assert _left(runs) == [".other", four, "three"]
    remove_folder(runs / "three")
    assert _left(runs) == [".other", four]


def test_a_folder_that_is_being_removed_is_not_cleared_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    removed: list[Path] = []

    def remove(path: Path, ignore_errors: bool = False) -> None:
        removed.append(path)
        if len(removed) == 1:
            clear_left(path.parent)

    monkeypatch.setattr(shutil, "rmtree", remove)
    remove_folder(tmp_path / "runs" / "one")
    assert [path.name for path in removed] == [".deleted-one"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    write_atomically(tmp_path / "f", "old")
    monkeypatch.setattr("qlora_demo.system.disk.os.fsync", fail)
    with pytest.raises(WorkError, match=f"^{tmp_path}/f: cannot be written: disk full"):
        write_atomically(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text("utf-8") == "old"


@pytest.mark.parametrize("write", [lambda path: write_atomically(path, "new"), lambda path: copy_whole(path, path)])
def test_a_write_below_a_file_says_what_is_wrong(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match=f"^{tmp_path}/file/f: cannot be written: .*; make it writable and try again"):
        write(tmp_path / "file" / "f")
