"""Room on disk, and folders that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from ..errors import ConfigError, RunError, WorkError, one_line
from ..units import memory

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEW, _DELETED = ".new-", ".deleted-"
"""Before the name of a folder that is not whole yet, and of one that is being removed."""
_LEAST_FREE = 1 << 20


def require_free(folder: Path, need_bytes: int, what: str) -> None:
    """Check before the work that `folder`, which need not exist yet, can take `need_bytes` for `what`.

    Raises `WorkError` that says what is needed and what is free.
    """
    nearest = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    free = shutil.disk_usage(nearest).free
    if free < need_bytes:
        raise WorkError(
            f"{folder}: {what} needs {memory(need_bytes)} there and {memory(free)} are free; "
            "remove files there or name a folder on another disk"
        )


def is_mounted(folder: Path) -> bool:
    """Whether a folder lies on another file system than the root, as a container's volumes do."""
    mounted = {Path(one.mountpoint) for one in psutil.disk_partitions(all=True)} - {Path("/")}
    return not mounted.isdisjoint((found := folder.resolve(), *found.parents))


def folder_bytes(path: Path) -> int:
    """The sizes of the files below `path`, or of the file that it is; what symlinks lead to is not counted."""
    if not path.is_dir():
        return _file_bytes(path)
    return sum(_file_bytes(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _file_bytes(file: Path) -> int:
    """0 also for a file that is gone by now: a run that trains removes its older checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        found = file.lstat()
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0


def read_file(path: Path, start: int = 0, last: int = 0) -> bytes:
    """The content from `start` on, or the `last` bytes, of a file that stands at `path` itself: a link leads elsewhere,
    a pipe would never end.  Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a plain file", str(path))
        file.seek(max(0, os.fstat(descriptor).st_size - last) if last else start)
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`: raises `WorkError` with the remedy where the disk refuses."""
    try:
        yield
    except OSError as exc:
        remedy = "the disk is full; remove files there" if is_full(exc) else f"{exc.strerror or exc}; make it writable"
        raise WorkError(f"{path}: cannot be written: {remedy} and try again") from exc


def copy_whole(source: Path, target: Path) -> None:
    """A copy of a file that appears under its name when it is whole.  Raises `WorkError` where the disk refuses."""
    draft = target.with_name(f".{secrets.token_hex(8)}")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, draft)
            draft.rename(target)
    finally:
        with suppress(OSError):
            draft.unlink()


def is_full(exc: BaseException, folder: Path | None = None) -> bool:
    """Whether a full disk is what went wrong.

    safetensors and tokenizers report one in classes of their own: only the text tells.  torch does not tell at all:
    then it is whether `folder`, where it was writing, has room now.
    """
    told = getattr(exc, "errno", None) in _FULL or any(f"(os error {code})" in str(exc) for code in _FULL)
    told = told or (exc.__cause__ is not None and is_full(exc.__cause__))
    return told or (folder is not None and out_of_room(folder))


def out_of_room(folder: Path) -> bool:
    """Whether the disk that a folder is on has next to nothing left."""
    return shutil.disk_usage(folder).free < _LEAST_FREE


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write beside, then rename; where the disk refuses, nothing is left and `WorkError` says so."""
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with writing(path):
            _write_through(draft, content)
            draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink()


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(parent: Path, label: str) -> Iterator[tuple[str, Path]]:
    """A name that nothing in `parent` has, of the time, `label` and chance, and a hidden folder to write into.

    The folder has that name when the block ends, and is gone when it fails.  Raises `WorkError` where the disk refuses.
    """
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with _at_work(parent):
            name, draft = _reserved(parent, label)
            try:
                yield name, draft
                draft.rename(parent / name)
            finally:
                shutil.rmtree(draft, ignore_errors=True)


def _reserved(parent: Path, label: str) -> tuple[str, Path]:
    """The hidden folder is made before its name is looked for, so that nobody else can take the name between."""
    while True:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(2)}"
        draft = parent / f"{_NEW}{name}"
        with suppress(FileExistsError):
            draft.mkdir()
            if not os.path.lexists(parent / name):
                return name, draft
            draft.rmdir()


def remove_folder(path: Path) -> None:
    """Remove a folder, whose name is free at once."""
    doomed = path.with_name(f"{_DELETED}{path.name}")
    with _at_work(path.parent):
        path.rename(doomed)
        shutil.rmtree(doomed)


def clear_left(folder: Path) -> None:
    """Remove what killed processes left half made or half removed in a folder, unless somebody is at such a thing."""
    left = [*folder.glob(f"{_NEW}*"), *folder.glob(f"{_DELETED}*")]
    if left:
        with suppress(BlockingIOError), _at_work(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for one in left:
                shutil.rmtree(one, ignore_errors=True)


@contextmanager
def _at_work(folder: Path, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Share a folder's lock with who else makes or removes something in it, or hold it alone."""
    descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def require_new(out: Path) -> None:
    """Raise `ConfigError` where something stands at `out` already."""
    if os.path.lexists(out):
        raise ConfigError("out", f"{out} exists already; name a new folder or remove it")


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write into; it becomes `out` when the block ends, and is gone when it fails.

    The folder that it stands in is made, and none above: a run that was deleted stays so.  A draft that a killed
    process left behind is removed first.  Raises `ConfigError` where `out` exists already, `RunError` where what it
    would stand in is gone, and `WorkError` where the disk refuses, also where a library reports that in an error of its
    own.
    """
    require_new(out)
    draft = out.with_name(f".{out.name}.new")
    try:
        with _claimed(draft, out):
            yield draft
            _sync(draft)
            draft.rename(out)
    except Exception as exc:  # noqa: BLE001 - a full disk comes in many classes; whatever it is, it is raised on
        _raise_on(out, exc)


@contextmanager
def _claimed(draft: Path, out: Path) -> Iterator[None]:
    """A new folder that is locked while it is ours, so that nobody takes it for a draft that was left behind."""
    with suppress(FileNotFoundError):
        stale = _lock_folder(draft, out)
        shutil.rmtree(draft)
        os.close(stale)
    _make_in_place(draft, out)
    descriptor = _lock_folder(draft, out)
    try:
        yield
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(descriptor)


def _make_in_place(draft: Path, out: Path) -> None:
    try:
        with suppress(FileExistsError):
            draft.parent.mkdir()
    except FileNotFoundError as exc:
        raise RunError(f"{out}: {out.parent.parent} is gone; choose another run or make that folder") from exc
    draft.mkdir()


def _lock_folder(draft: Path, out: Path) -> int:
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise WorkError(f"{out}: somebody else is writing it now; wait until it is there") from exc
    return descriptor


def _raise_on(out: Path, exc: Exception) -> NoReturn:
    if is_full(exc):
        raise WorkError(
            f"{out}: the disk is full and nothing was kept; remove files there or name a folder on another disk"
        ) from exc
    if isinstance(exc, OSError):
        raise WorkError(
            f"{out}: not written, nothing was kept ({one_line(exc, 300)}); make it writable or name another"
        ) from exc
    raise exc


def _sync(folder: Path) -> None:
    """Have the files' contents on the disk before the name says that they are whole."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
