"""The processes that the app starts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_CHECKOUT = str(Path(__file__).resolve().parents[2])


def environment() -> dict[str, str]:
    """This process's own, with which another finds this package from whatever folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([_CHECKOUT, os.environ.get("PYTHONPATH", "")])}


def spawn(command: Sequence[str], log: Path, inherited: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """A process that outlives this one, with the inherited descriptors; what it says goes to the end of a log.  Whoever
    starts it waits for it."""
    with log.open("ab") as said:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
            start_new_session=True,
            env=environment(),
        )
