"""The app's log: one event a line on stderr, as JSON or as text, with the run and the request it belongs to.

    {"time": "2026-01-31T12:00:00.000+00:00", "level": "info", "event": "run.started", "run": "...", "request": "..."}

QLORA_DEMO_LOG says json or text; without it, text on a terminal and json elsewhere.  No event holds what a person or a
model wrote, and no line a token: what looks like one is struck out, also of what libraries say.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigError

FORMATS = ("json", "text")
_TOKEN = re.compile(r"hf_[A-Za-z0-9_.-]{6,}")
"""Also of who signed in, `hf_oauth_` and three parts with dots between; it may follow on an escape or a letter."""
_RUN: ContextVar[str] = ContextVar("run", default="")
_REQUEST: ContextVar[str] = ContextVar("request", default="")
_log = logging.getLogger("qlora_demo")
_log.addHandler(logging.NullHandler())


def event(name: str, level: int = logging.INFO, trace: BaseException | None = None, /, **facts: Any) -> None:
    """Log that something happened: `name` as ``thing.happened``, with figures and names but nobody's words; ``trace``:
    with where this was raised."""
    _log.log(level, name, exc_info=trace, extra={"facts": facts})


@contextmanager
def of(*, run: str = "", request: str = "") -> Iterator[None]:
    """What is logged in this block, by this thread or task, belongs to the run or the request."""
    tokens = [(kind, kind.set(name)) for kind, name in ((_RUN, run), (_REQUEST, request)) if name]
    try:
        yield
    finally:
        for kind, token in tokens:
            kind.reset(token)


def set_up(environ: Mapping[str, str] = os.environ) -> None:
    """Send the log to stderr; ours from level info on, that of libraries from warning on."""
    chosen = environ.get("QLORA_DEMO_LOG", "") or ("text" if sys.stderr.isatty() else "json")
    if chosen not in FORMATS:
        raise ConfigError("QLORA_DEMO_LOG", f"{chosen!r} is not allowed; give one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if chosen == "json" else Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    _log.setLevel(logging.INFO)


class Text(logging.Formatter):
    """An event for people: time, level, name, facts."""

    def format(self, record: logging.LogRecord) -> str:
        told = _told(record)
        time, level, name = told.pop("time")[11:19], told.pop("level"), told.pop("event")
        return " ".join([time, level, name, *(f"{key}={value}" for key, value in told.items())])


class Json(logging.Formatter):
    """An event for machines: one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_told(record))


def _told(record: logging.LogRecord) -> dict[str, Any]:
    ours = record.name == _log.name
    head = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": record.getMessage() if ours else "library",
        "run": _RUN.get(),
        "request": _REQUEST.get(),
    }
    told = {key: value for key, value in head.items() if value} | getattr(record, "facts", {})
    if not ours:
        told |= {"logger": record.name, "message": record.getMessage()}
    if record.exc_info:
        told["traceback"] = logging.Formatter().formatException(record.exc_info)
    return {key: _cleared(value) for key, value in told.items()}


def _cleared(value: Any) -> Any:
    """A fact without tokens, however deep they are; what is no figure, list or table is told as text."""
    if isinstance(value, Mapping):
        return {without_tokens(str(key)): _cleared(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleared(inner) for inner in value]
    return value if isinstance(value, int | float | None) else without_tokens(str(value))


def without_tokens(text: str) -> str:
    """A text with what looks like a token struck out."""
    token = os.environ.get("HF_TOKEN", "")
    return _TOKEN.sub("(token)", text.replace(token, "(token)") if token else text)
