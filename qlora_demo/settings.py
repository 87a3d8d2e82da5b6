"""The app's environment, read once: where things live, who may do what, how far it may go.

    QLORA_DEMO_HOME            where models, runs and reports live (default: qlora_demo on the disk below where it can
                               be written, else in the platform's user data directory)
    QLORA_DEMO_DISK            a disk that outlives the container, used where it is there (default on a Space: /data)
    QLORA_DEMO_BUNDLED         a folder that holds the bundled model already, as the image has one
    QLORA_DEMO_PRELOAD         base models to fetch at the start, in the background: hub ids, separated by commas
    QLORA_DEMO_SYNC_REPO       a hub repository that ended runs and their reports are copied to; needs HF_TOKEN
    QLORA_DEMO_PAUSE_MINUTES   pause the Space's hardware after so many minutes without use; needs HF_TOKEN
    QLORA_DEMO_LOG             json or text (default: text on a terminal, json elsewhere); see system/logs.py
    QLORA_DEMO_OPERATORS       hub usernames, separated by commas, who are operators when signed in with Hugging Face;
                               on a Space its creator is one too
    QLORA_DEMO_PASSWORD        who knows it can sign in as an operator; at least 8 characters

On a Space, with GRADIO_SHARE, on an address that other machines reach, or where operators or a password are set,
everyone else is a visitor; elsewhere everyone is an operator.  `Limits` lists the limits, each read from QLORA_DEMO_
and its name in capitals.  A Space sets SPACE_ID, OAUTH_CLIENT_ID and its like where its README says
``hf_oauth: true``, and SPACES_ZERO_GPU on ZeroGPU.  Host and port follow Gradio's own GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT; uvicorn's FORWARDED_ALLOW_IPS says which proxies may tell an address.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import platformdirs

from .errors import ConfigError
from .system.locks import HeldLock

_SPACE_DISK = "/data"
_HOST = "127.0.0.1"
_OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
_SHORTEST_PASSWORD = 8
_PRIVATE_NETWORKS = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10"
"""Where a Space's own proxies are; a visitor's address is the last one outside of these."""


@dataclass(frozen=True)
class Limits:
    """How far visitors may go, and in the lower half everyone.  All are whole numbers >= 1."""

    visitor_new_tokens: int = field(default=512, metadata={"meaning": "tokens in one of a visitor's answers"})
    visitor_prompt_chars: int = field(
        default=4000, metadata={"meaning": "characters in a visitor's prompt, and in the system prompt"}
    )
    visitor_talk_chars: int = field(
        default=16_000, metadata={"meaning": "characters in a visitor's conversation, answers included"}
    )
    visitor_requests: int = field(
        default=20, metadata={"meaning": "prompts, votes and looks into layers of one visitor's page in a minute"}
    )
    address_requests: int = field(default=120, metadata={"meaning": "the same from one address"})
    all_requests: int = field(default=300, metadata={"meaning": "the same from all visitors"})
    queue_length: int = field(
        default=20, metadata={"meaning": "visitors who wait for an answer, at most half from one address"}
    )
    page_calls: int = field(
        default=600,
        metadata={"meaning": "calls of any kind of one visitor's page in a minute; an open page makes some 70"},
    )
    address_calls: int = field(default=12_000, metadata={"meaning": "the same from one address"})
    address_pages: int = field(default=120, metadata={"meaning": "pages opened from one address in a minute"})
    open_pages: int = field(
        default=250,
        metadata={"meaning": "pages whose conversations are kept, at 0.6 MiB each"},
    )
    sign_ins: int = field(default=5, metadata={"meaning": "attempts at the password from one address in a minute"})
    upload_mb: int = field(default=200, metadata={"meaning": "MiB of one uploaded file"})
    stored_runs: int = field(default=1000, metadata={"meaning": "runs that are kept"})
    stored_gb: int = field(default=500, metadata={"meaning": "GB of all runs, uploads and benchmarks"})
    votes_mb: int = field(default=500, metadata={"meaning": "MB of blind comparisons and votes"})

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Limits:
        """Each limit's variable where it is set, else its default; `ConfigError` names one that is no number."""
        given = {limit.name: environ.get(variable(limit.name), "").strip() for limit in fields(cls)}
        return cls(**{name: _count(name, text) for name, text in given.items() if text})


LIMITS = Limits()
"""The defaults."""


def variable(limit: str) -> str:
    """The environment variable of a limit."""
    return f"QLORA_DEMO_{limit.upper()}"


def _count(limit: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ConfigError(variable(limit), f"{text!r} is not allowed; give a whole number >= 1")
    return int(text)


@dataclass(frozen=True)
class Settings:
    """Directories are absolute; none need exist yet.

    ``space`` is the Space's id, ``creator`` the hub's id of who made it, ``zero_gpu`` whether its hardware is ZeroGPU,
    ``hub_sign_in`` whether people can sign in with Hugging Face, ``shared`` whether strangers can reach the app by a
    link that Gradio makes, ``host`` the address that the app answers on where it is told no other.
    """

    home: Path
    space: str = ""
    zero_gpu: bool = False
    disk: Path | None = None
    bundled: Path | None = None
    preload: tuple[str, ...] = ()
    sync_repo: str = ""
    pause_minutes: int = 0
    operators: tuple[str, ...] = ()
    password: str = field(default="", repr=False)
    hub_sign_in: bool = False
    creator: str = ""
    shared: bool = False
    host: str = _HOST
    limits: Limits = LIMITS

    @property
    def is_space(self) -> bool:
        return bool(self.space)

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def uploads(self) -> Path:
        return self.home / "uploads"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        space = environ.get("SPACE_ID", "")
        named = environ.get("QLORA_DEMO_HOME", "")
        disk = "" if named else environ.get("QLORA_DEMO_DISK") or (_SPACE_DISK if space else "")
        bundled = environ.get("QLORA_DEMO_BUNDLED", "")
        return cls(
            home=_home(named, Path(disk) if disk else None),
            space=space,
            zero_gpu=bool(environ.get("SPACES_ZERO_GPU")),
            disk=Path(disk) if disk else None,
            bundled=Path(bundled) if bundled else None,
            preload=_names(environ.get("QLORA_DEMO_PRELOAD", "")),
            sync_repo=environ.get("QLORA_DEMO_SYNC_REPO", "").strip(),
            pause_minutes=_minutes(environ.get("QLORA_DEMO_PAUSE_MINUTES", "")),
            operators=_names(environ.get("QLORA_DEMO_OPERATORS", "")),
            password=_password(environ.get("QLORA_DEMO_PASSWORD", "")),
            # Elsewhere Gradio signs everyone in as whoever is logged in on the machine.
            hub_sign_in=bool(space) and environ.get("SYSTEM") == "spaces" and all(map(environ.get, _OAUTH)),
            creator=environ.get("SPACE_CREATOR_USER_ID", ""),
            shared=environ.get("GRADIO_SHARE", "").lower() == "true",
            host=environ.get("GRADIO_SERVER_NAME") or _HOST,
            limits=Limits.from_environment(environ),
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _password(text: str) -> str:
    if text and len(text) < _SHORTEST_PASSWORD:
        raise ConfigError("QLORA_DEMO_PASSWORD", f"has {len(text)} characters; give at least {_SHORTEST_PASSWORD}")
    return text


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
    """Make a file in a home, lock it and remove it again; raises `OSError` where one of them cannot be done.

    A full disk has room for that: it is a home still, out of which something can be deleted.
    """
    home.mkdir(parents=True, exist_ok=True)
    probe = home / f".write-{os.getpid()}-{threading.get_ident()}"
    try:
        probe.touch()
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


def trust_proxies(settings: Settings) -> None:
    """On a Space, have uvicorn take a visitor's address from the Space's own proxies.  Call before it starts."""
    if settings.is_space:
        os.environ.setdefault("FORWARDED_ALLOW_IPS", _PRIVATE_NETWORKS)
