"""Blind comparisons and the votes on them: one SQLite file that several processes may use at once."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RequestError, TooMany, WorkError
from ..settings import LIMITS, variable
from ..system.disk import is_full
from .chance import LEVEL, p_value, sign_test, wilson

TIE, ALL_BAD = "tie", "all bad"
METHOD = (
    "Win rate: votes for a column over the votes in which it was shown; ties and all bad count for nobody. "
    "Intervals: 95% Wilson score. The verdict: two-sided exact binomial test on the votes that one of the best two won."
)
_PATIENCE = 10.0
"""Seconds: others keep a vote in much less."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS comparisons (
    id TEXT PRIMARY KEY, time REAL NOT NULL, run TEXT NOT NULL, system TEXT NOT NULL, prompt TEXT NOT NULL,
    settings TEXT NOT NULL, shown TEXT NOT NULL, answers TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS comparisons_of_run ON comparisons (run, time);
CREATE TABLE IF NOT EXISTS votes (
    comparison TEXT PRIMARY KEY REFERENCES comparisons (id), choice TEXT NOT NULL, time REAL NOT NULL
);
"""

Since = Callable[[str], float]


def _always(column: str) -> float:
    return 0.0


@dataclass(frozen=True)
class NewComparison:
    """One prompt and what the columns answered, ``shown`` in the order they stood in."""

    run: str
    system: str
    prompt: str
    settings: dict[str, Any]
    shown: tuple[str, ...]
    answers: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """A stored one; ``choice`` is empty until somebody voted.  Times are seconds since the epoch."""

    id: str
    time: float
    choice: str
    content: NewComparison


@dataclass(frozen=True)
class WinRate:
    """How often a column was the best of those shown; ``low`` and ``high`` bound the rate."""

    column: str
    wins: int
    shown: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """The votes on a run, best column first; ``earlier`` ones are of an adapter before its run was resumed, and are
    counted nowhere else."""

    run: str
    votes: int
    ties: int
    all_bad: int
    rates: tuple[WinRate, ...]
    verdict: str
    earlier: int = 0
    method: str = METHOD


class VoteStore:
    """Comparisons and votes of all runs; made at the first write."""

    def __init__(self, path: Path, most_mb: int = LIMITS.votes_mb) -> None:
        self.path = path
        self.most_mb = most_mb

    def require_room(self) -> None:
        """Raises `TooMany` where the file is so large that no comparison may be added."""
        if self.path.exists() and self.path.stat().st_size >= self.most_mb * 10**6:
            raise TooMany(
                f"votes: {self.path.name} holds {self.most_mb} MB ({variable('votes_mb')}), which is the most; "
                "chat without blind mode, or have an operator move the file away"
            )

    def add(self, new: NewComparison) -> str:
        """Keep a comparison; its id, to vote on.  Raises `TooMany` where the limit is reached."""
        self.require_room()
        name = secrets.token_hex(8)
        texts = [json.dumps(part, ensure_ascii=False) for part in (new.settings, new.shown, new.answers)]
        with self._open() as database:
            row = (name, time.time(), new.run, new.system, new.prompt, *texts)
            database.execute("INSERT INTO comparisons VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return name

    def vote(self, comparison: str, choice: str) -> None:
        """Keep the one vote on a comparison: a column that was shown, a tie, or all bad."""
        with self._open() as database:
            found = database.execute("SELECT shown FROM comparisons WHERE id = ?", (comparison,)).fetchone()
            if found is None:
                raise RequestError(f"vote: there is no comparison {comparison!r}; send a prompt in blind mode first")
            allowed = [*json.loads(found[0]), TIE, ALL_BAD]
            if choice not in allowed:
                raise ConfigError("vote", f"{choice!r} was not shown; choose from {', '.join(allowed)}")
            try:
                database.execute("INSERT INTO votes VALUES (?, ?, ?)", (comparison, choice, time.time()))
            except sqlite3.IntegrityError as exc:
                raise RequestError("vote: this comparison has its vote already; send another prompt") from exc

    def comparisons(self, run: str, limit: int = 100, offset: int = 0, since: Since = _always) -> list[Comparison]:
        """Comparisons of a run, newest first, by adapters that are still there: ``since`` says of a column's name since
        when, in seconds since the epoch."""
        if not self.path.exists():
            return []
        query = (
            "SELECT run, system, prompt, settings, shown, answers, id, c.time, coalesce(choice, '') FROM comparisons c "
            "LEFT JOIN votes ON comparison = id WHERE run = ? AND c.time >= since(shown) "
            "ORDER BY c.time DESC, id LIMIT ? OFFSET ?"
        )
        with self._open() as database:
            _know(database, since)
            rows = database.execute(query, (run, limit, offset)).fetchall()
        return [_comparison(row) for row in rows]

    def count(self, run: str) -> int:
        """Votes on a run's comparisons."""
        return sum(count for *_, count in self._ballots(run))

    def tally(self, run: str, since: Since = _always) -> Tally:
        """Win rates of a run's columns, and what the votes say; ``since`` as in `comparisons`."""
        ballots = self._ballots(run, since)
        total = sum(count for *_, count in ballots)
        wins = {name: 0 for shown, *_ in ballots for name in shown}
        seen = dict(wins)
        for shown, choice, count in ballots:
            for name in shown:
                seen[name] += count
                wins[name] += count * (name == choice)
        rates = [
            WinRate(name, wins[name], seen[name], wins[name] / seen[name], *wilson(wins[name], seen[name]))
            for name in wins
        ]
        rates.sort(key=lambda one: one.rate, reverse=True)
        ties, bad = (sum(n for _, choice, n in ballots if choice == kind) for kind in (TIE, ALL_BAD))
        earlier = self.count(run) - total
        return Tally(run, total, ties, bad, tuple(rates), _verdict(rates, ballots, total), earlier)

    def _ballots(self, run: str, since: Since = _always) -> list[tuple[tuple[str, ...], str, int]]:
        """What was shown, what was chosen, and how often."""
        if not self.path.exists():
            return []
        query = (
            "SELECT shown, choice, count(*) FROM votes JOIN comparisons ON id = comparison "
            "WHERE run = ? AND comparisons.time >= since(shown) GROUP BY shown, choice"
        )
        with self._open() as database:
            _know(database, since)
            rows = database.execute(query, (run,)).fetchall()
        return [(tuple(json.loads(shown)), choice, count) for shown, choice, count in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as database, database:
                _switch_to_wal(database)
                database.executescript(_SCHEMA)
                yield database
        except (sqlite3.Error, OSError, ValueError) as exc:
            raise WorkError(f"{self.path}: {exc}; {self._remedy(exc)}") from exc

    def _remedy(self, exc: Exception) -> str:
        if is_full(exc, self.path.parent):  # which SQLite may take for an error of the disk
            return "the disk is full; remove files there and try again"
        return "somebody else is writing it; try again" if _is_busy(exc) else "move the damaged file away"


def _know(database: sqlite3.Connection, since: Since) -> None:
    """Let queries ask since when all columns that were shown are there."""
    database.create_function("since", 1, cache(lambda shown: max(map(since, json.loads(shown)), default=0.0)))


def _switch_to_wal(database: sqlite3.Connection) -> None:
    """Once per file; SQLite itself does not wait for who else is about to."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if not _is_busy(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _is_busy(exc: Exception) -> bool:
    """Whether others have the file locked; the low byte is the kind of error."""
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _comparison(row: Sequence[Any]) -> Comparison:
    run, system, prompt, settings, shown, answers, name, at, choice = row
    content = NewComparison(run, system, prompt, json.loads(settings), tuple(json.loads(shown)), json.loads(answers))
    return Comparison(name, at, choice, content)


def _verdict(rates: Sequence[WinRate], ballots: Sequence[tuple[tuple[str, ...], str, int]], total: int) -> str:
    if not total:
        return "No votes yet."
    if len(rates) < 2:
        return f"{total} votes, and only {rates[0].column} was shown."
    best, second = rates[0].column, rates[1].column
    both = [(choice, count) for shown, choice, count in ballots if {best, second} <= set(shown)]
    if not both:
        return f"{best} and {second} were never shown together."
    won = {name: sum(count for choice, count in both if choice == name) for name in (best, second)}
    best, second = sorted(won, key=won.__getitem__, reverse=True)  # of these votes: others may have put one ahead
    ours, theirs, met = won[best], won[second], sum(count for _, count in both)
    chance = sign_test(ours, theirs)
    if chance < LEVEL:
        return f"{best} was preferred to {second} in {ours} of {ours + theirs} decided votes ({p_value(chance)})."
    return f"The votes do not separate {best} from {second}: {ours} against {theirs} of {met} ({p_value(chance)})."
