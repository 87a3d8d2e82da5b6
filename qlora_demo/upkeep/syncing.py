"""Copies ended runs and their reports to a private repository of a model hub, where QLORA_DEMO_SYNC_REPO names one.

A thread of its own compares with what is there by hash, so that nothing is sent twice and a restart goes on where it
was.  Of a run go: settings, state, metrics, versions, adapter, report; not its log, its results and its held-out rows.
The report holds what it shows: evaluated held-out rows with their answers, prompts, kept conversations, note, votes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import DemoError
from ..records import Note
from ..runs import Run
from ..services import Services
from ..system import logs
from ..system.steady import Steady

_SECONDS = 60.0
_PARTS = ("config.json", "state.json", "metrics.jsonl", "versions.json", "adapter/*", "report/*")
Mark = tuple[tuple[str, int, int], ...]
"""Names, sizes and times of a run's files: what is looked at to see whether anything changed."""


class Syncer:
    """Looks every minute, for as long as the app lives."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.repo = services.settings.sync_repo
        self.trouble = ""
        self._there: dict[str, Mark] = {}
        self._looked = False

    def start(self) -> None:
        Steady("sync").every(_SECONDS, self.look)

    @property
    def pending(self) -> bool:
        """Whether something may still have to be sent, as what the hub has refused has: a pause would lose it."""
        return not self._looked or any(map(self._unsent, self._ended()))

    def look(self) -> None:
        """Send what changed since the last look; whatever goes wrong is told, and tried again at the next."""
        try:
            trouble = self._send_unsent()
        except OSError as exc:
            trouble = str(exc)
        if trouble not in ("", self.trouble):
            logs.event("sync.failed", logging.ERROR, why=trouble)
        self.trouble = trouble

    def note(self) -> Note:
        """Where it stands."""
        if self.trouble:
            return Note(f"sync: {self.trouble}", bad=True)
        return Note(f"sync: {len(self._there)} runs are at {self.repo}")

    def _unsent(self, run: Run) -> Mark:
        """What is to be sent of a run; nothing where all of it is there, or the run is gone."""
        mark = _mark(run)
        return mark if mark != self._there.get(run.id) else ()

    def _send_unsent(self) -> str:
        """What went wrong, in words; a run that is refused keeps no other one here."""
        reasons = dict[str, list[str]]()
        for run in self._ended():
            if mark := self._unsent(run):
                try:
                    self._send(run)
                    self._there[run.id] = mark
                except (DemoError, OSError) as exc:
                    reasons.setdefault(str(exc), []).append(run.id)
        self._looked = True
        return "; ".join(f"{why} ({_named(names)})" for why, names in reasons.items())

    def _send(self, run: Run) -> None:
        files = {f"runs/{run.id}/{path.relative_to(run.path).as_posix()}": path for path in _files(run)}
        sent = self.services.hub.sync(files, self.repo, token=os.environ.get("HF_TOKEN", ""))
        logs.event("sync.ended", run=run.id, files=len(files), sent=sent)

    def _ended(self) -> list[Run]:
        return [run for run in self.services.runs.all() if run.state.ended and not run.alive]


def _named(runs: list[str]) -> str:
    return f"run {runs[0]} and {len(runs) - 1} more" if len(runs) > 1 else f"run {runs[0]}"


def _files(run: Run) -> list[Path]:
    """What goes; a name that begins with a dot is a file that is being written, or that a kill left half written."""
    found = [path for part in _PARTS for path in run.path.glob(part) if not path.name.startswith(".")]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _mark(run: Run) -> Mark:
    return tuple(_stamps(run))


def _stamps(run: Run) -> Iterator[tuple[str, int, int]]:
    for path in _files(run):
        with suppress(FileNotFoundError):  # replaced or deleted meanwhile
            stat = path.stat()
            yield str(path), stat.st_size, stat.st_mtime_ns
