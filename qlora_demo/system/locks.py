"""A lock that a process holds for as long as it lives, however it dies.

`flock` belongs to the open file, not to the process that took it: a child that inherits the descriptor keeps the
lock, and the kernel drops it with the last holder, also after `kill -9`.  So a run is alive exactly while its lock is
held: no pid to go stale, no window between spawn and the child's first write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Self

from ..errors import RunError, WorkError
from .disk import read_object

_NO_LOCK = (errno.ENOENT, errno.EISDIR, errno.ELOOP)
"""What stands there can be held by nobody."""
_PROBE_SECONDS = 0.2
"""A reader's probe holds the lock for an instant and must not look like a holder."""


class HeldLock:
    """An exclusive lock on a file, with a note about its holder inside.  Take it with `acquire`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def acquire(
        cls, path: Path, note: dict[str, Any], patience: float = _PROBE_SECONDS, *, shared: bool = False
    ) -> Self | None:
        """The lock, or None where another open file still holds it after `patience` seconds; ``shared``: with others
        who share it.

        Raises `RunError` where its folder is gone, which is not made again, and `WorkError` where the disk refuses.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError as exc:
            raise RunError(f"{path.parent.name}: it was deleted meanwhile; choose another or start a new one") from exc
        except OSError as exc:
            raise WorkError(f"{path}: cannot be locked ({exc.strerror}); free disk space or make it writable") from exc
        if not _lock(fd, patience, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            os.close(fd)
            return None
        held = cls(fd)
        held.annotate(note)
        return held

    def annotate(self, note: dict[str, Any]) -> None:
        """Replace the note about the holder; a full disk takes none, and keeps nobody from the lock."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, json.dumps(note).encode(), 0)

    def release(self) -> None:
        """Close our descriptor; a child that inherited it keeps the lock."""
        os.close(self.fd)


def _lock(fd: int, patience: float, how: int) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def is_held(path: Path, *, shared: bool = False) -> bool:
    """Whether some process holds the lock; ``shared``: or shares it.

    Without, it is a shared probe, so two probes never see each other.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as exc:
        if exc.errno in _NO_LOCK:
            return False
        raise
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if shared else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_note(path: Path) -> dict[str, Any]:
    """What the last holder wrote about itself; empty where there is nothing readable."""
    return read_object(path)
