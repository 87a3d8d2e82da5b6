"""The app's environment, read once: where things live, whether this is a Space, how far it may go.

    QLORA_DEMO_HOME   where models, runs and reports live (default: the platform's user data directory, or
                      /data/qlora_demo on a Space that has a /data to write to)

Host and port follow Gradio's own GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .errors import ConfigError

_SPACE_DISK = Path("/data")


@dataclass(frozen=True)
class Settings:
    """Directories are absolute; none need exist yet."""

    home: Path
    is_space: bool = False

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        is_space = bool(environ.get("SPACE_ID"))
        home = environ.get("QLORA_DEMO_HOME", "")
        if home:
            chosen = Path(home).expanduser().resolve()
        elif is_space and os.access(_SPACE_DISK, os.W_OK):
            chosen = _SPACE_DISK / "qlora_demo"
        else:
            chosen = platformdirs.user_data_path("qlora_demo")
        return cls(home=_writable(chosen), is_space=is_space)


def _writable(home: Path) -> Path:
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as exc:
        raise ConfigError("QLORA_DEMO_HOME", f"{home} cannot be written ({exc.strerror}); name another folder") from exc
    return home


def quiet_libraries() -> None:
    """No telemetry leaves, and third-party progress bars stay out of our logs.  Call before importing them."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
