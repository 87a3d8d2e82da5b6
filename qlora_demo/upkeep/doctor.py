"""Whether this machine has what the app needs, and what to do where it has not: the part that needs no torch.

    python -m qlora_demo doctor [--json]

`ml/doctor.py` looks at what models run on.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, one_line
from ..settings import Settings
from ..units import GIB, memory
from .status import hub_answers

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
_PIN = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", re.M)
_ROOM = 2 * GIB
"""What the bundled model, a run of it with its checkpoints, and its merges take."""


@dataclass(frozen=True)
class Check:
    """What was looked at and found; ``remedy`` says what to do where it is not ``ok``; the app runs without what is
    not ``needed``."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def examine(environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Python, packages, home, disk and hub."""
    version = sys.version_info[:2] in ((3, 11), (3, 12))
    yield Check("python", version, platform.python_version(), "use Python 3.11 or 3.12")
    yield from packages()
    try:
        settings = Settings.from_environment(environ)
    except ConfigError as exc:
        yield Check("home", False, str(exc), "set the variable that is named to what it says")
        return
    yield home(settings.home)
    yield disk(settings.home)
    remedy = "check the network and HF_ENDPOINT; bundled models and folders work without"
    answers = hub_answers()
    yield Check("hub", answers, "reachable" if answers else "not reachable", remedy, needed=False)


def packages(requirements: Path = REQUIREMENTS) -> Iterator[Check]:
    """Each package that requirements.txt pins, against what is installed."""
    remedy = "run pip install -r requirements.txt in the environment that starts the app"
    for name, wanted in _PIN.findall(requirements.read_text("utf-8")):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(f"package {name}", False, f"missing, {wanted} is needed", remedy)
        else:
            same = found.partition("+")[0] == wanted
            yield Check(f"package {name}", same, found if same else f"{found}, {wanted} is needed", remedy)


def home(folder: Path) -> Check:
    """Whether runs and votes can be kept there: a folder renamed, a database written."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
            draft = Path(name) / "draft"
            draft.mkdir()
            draft.rename(Path(name) / "whole")
            with contextlib.closing(sqlite3.connect(Path(name) / "votes.sqlite3")) as votes:
                votes.execute("create table kept (vote)")
    except (OSError, sqlite3.Error) as exc:
        remedy = "set QLORA_DEMO_HOME to a folder on a local disk"
        return Check("home", False, f"{folder} cannot hold runs and votes ({one_line(exc, 300)})", remedy)
    return Check("home", True, str(folder))


def disk(folder: Path) -> Check:
    """Whether there is room for more than a look around."""
    free = shutil.disk_usage(folder).free
    remedy = f"free {memory(_ROOM)} there, or set QLORA_DEMO_HOME to a folder on another disk"
    return Check("disk", free >= _ROOM, f"{memory(free)} free", remedy)


def attempt(name: str, remedy: str, look: Callable[[], str]) -> Check:
    """A check that holds where `look` says what it found, and not where it raises."""
    try:
        return Check(name, True, look())
    except Exception as exc:  # noqa: BLE001 - whatever keeps it from working is what is asked for
        return Check(name, False, f"{type(exc).__name__}: {one_line(exc, 300)}", remedy)
