"""Room on disk, and folders that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from .errors import ConfigError, WorkError
from .units import memory

_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def folder_bytes(path: Path) -> int:
    """The sizes of the files below `path`, or of the file that it is; what symlinks lead to is not counted."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write into; it becomes `out` when the block ends, and is gone when it fails.

    A draft that a killed process left behind is removed first.  Raises `ConfigError` where `out` exists already, and
    `WorkError` where the disk refuses, also where a library reports that in an error of its own.
    """
    if os.path.lexists(out):
        raise ConfigError("out", f"{out} exists already; name a new folder or remove it")
    draft = out.with_name(f".{out.name}.new")
    try:
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        yield draft
        _sync(draft)
        draft.rename(out)
    except Exception as exc:  # noqa: BLE001 - a full disk comes in many classes; whatever it is, it is raised on
        _raise_on(out, exc)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_full(exc: Exception) -> bool:
    """safetensors and tokenizers report a full disk in classes of their own: only the text tells."""
    return getattr(exc, "errno", None) in _FULL or any(f"(os error {code})" in str(exc) for code in _FULL)


def _raise_on(out: Path, exc: Exception) -> NoReturn:
    if _is_full(exc):
        raise WorkError(
            f"{out}: the disk is full and nothing was kept; remove files there or name a folder on another disk"
        ) from exc
    if isinstance(exc, OSError):
        reason = " ".join(str(exc).split())
        raise WorkError(f"{out}: not written, nothing was kept ({reason}); make it writable or name another") from exc
    raise exc


def _sync(folder: Path) -> None:
    """Have the files' contents on the disk before the name says that they are whole."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
