"""The app's environment, read once: where things live, whether this is a Space, how far it may go.

    QLORA_DEMO_HOME            where models, runs and reports live (default: qlora_demo on the disk below where it can
                               be written, else in the platform's user data directory)
    QLORA_DEMO_DISK            a disk that outlives the container, used where it is there (default on a Space: /data)
    QLORA_DEMO_BUNDLED         a folder that holds the bundled model already, as the image has one
    QLORA_DEMO_PRELOAD         base models to fetch at the start, in the background: hub ids, separated by commas
    QLORA_DEMO_SYNC_REPO       a hub repository that ended runs and their reports are copied to; needs HF_TOKEN
    QLORA_DEMO_PAUSE_MINUTES   pause the Space's hardware after so many minutes without use; needs HF_TOKEN
    QLORA_DEMO_LOG             json or text (default: text on a terminal, json elsewhere); see logs.py

Host and port follow Gradio's own GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .errors import ConfigError
from .locks import HeldLock

_SPACE_DISK = "/data"


@dataclass(frozen=True)
class Settings:
    """Directories are absolute; none need exist yet.  ``space`` is the Space's id."""

    home: Path
    space: str = ""
    disk: Path | None = None
    bundled: Path | None = None
    preload: tuple[str, ...] = ()
    sync_repo: str = ""
    pause_minutes: int = 0

    @property
    def is_space(self) -> bool:
        return bool(self.space)

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        space = environ.get("SPACE_ID", "")
        named = environ.get("QLORA_DEMO_HOME", "")
        disk = "" if named else environ.get("QLORA_DEMO_DISK") or (_SPACE_DISK if space else "")
        bundled = environ.get("QLORA_DEMO_BUNDLED", "")
        return cls(
            home=_home(named, Path(disk) if disk else None),
            space=space,
            disk=Path(disk) if disk else None,
            bundled=Path(bundled) if bundled else None,
            preload=tuple(name.strip() for name in environ.get("QLORA_DEMO_PRELOAD", "").split(",") if name.strip()),
            sync_repo=environ.get("QLORA_DEMO_SYNC_REPO", "").strip(),
            pause_minutes=_minutes(environ.get("QLORA_DEMO_PAUSE_MINUTES", "")),
        )


def _home(named: str, disk: Path | None) -> Path:
    if named:
        return _usable(Path(named).expanduser().resolve(), "QLORA_DEMO_HOME")
    with contextlib.suppress(ConfigError):
        if disk is not None and disk.is_dir():
            return _usable(disk / "qlora_demo", "QLORA_DEMO_DISK")
    return _usable(platformdirs.user_data_path("qlora_demo"), "QLORA_DEMO_HOME")


def _minutes(text: str) -> int:
    if not text.strip():
        return 0
    if not text.strip().isdecimal():
        raise ConfigError("QLORA_DEMO_PAUSE_MINUTES", f"{text!r} is not allowed; give whole minutes, or 0 for never")
    return int(text)


def usable_home(home: Path) -> None:
    """Write to a home, lock there and remove again; raises `OSError` where one of them cannot be done."""
    home.mkdir(parents=True, exist_ok=True)
    probe = home / f".write-{os.getpid()}-{threading.get_ident()}"
    try:
        held = HeldLock.acquire(probe, {})
        assert held is not None, "nobody else names this file"
        held.release()
    finally:
        probe.unlink(missing_ok=True)


def _usable(home: Path, variable: str) -> Path:
    try:
        usable_home(home)
    except OSError as exc:
        raise ConfigError(variable, f"{home} cannot be written ({exc.strerror}); name another folder") from exc
    return home


def quiet_libraries() -> None:
    """No telemetry leaves, and third-party progress bars stay out of our logs.  Call before importing them."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
