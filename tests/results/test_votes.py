"""Comparisons and votes: kept, counted, and never claimed to say more than they do."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from qlora_demo.errors import ConfigError, RequestError, WorkError
from qlora_demo.results import tables
from qlora_demo.results.chance import sign_test, wilson
from qlora_demo.results.votes import ALL_BAD, TIE, NewComparison, VoteStore


def comparison(*shown: str, run: str = "run") -> NewComparison:
    answers = {name: {"text": f"{name} <said> 'this'"} for name in shown}
    return NewComparison(run, "be brief", "a prompt", {"seed": 1}, shown, answers)


@pytest.fixture
def store(tmp_path: Path) -> VoteStore:
    return VoteStore(tmp_path / "home" / "votes.sqlite3")


def cast(store: VoteStore, choice: str, count: int, shown: tuple[str, ...] = ("base", "adapter")) -> None:
    for _ in range(count):
        store.vote(store.add(comparison(*shown)), choice)


def test_a_comparison_comes_back_as_it_was_kept(store: VoteStore) -> None:
    kept = comparison("adapter", "base")
    name = store.add(kept)
    (found,) = store.comparisons("run")
    assert (found.id, found.choice, found.content) == (name, "", kept)
    store.vote(name, "adapter")
    assert store.comparisons("run")[0].choice == "adapter"
    assert VoteStore(store.path).comparisons("run")[0].content == kept
    assert store.comparisons("another") == []


def test_newest_first_by_page(store: VoteStore) -> None:
    names = [store.add(comparison("base", "adapter")) for _ in range(5)]
    assert [one.id for one in store.comparisons("run", limit=2, offset=1)] == [names[3], names[2]]


def test_one_vote_on_what_was_shown(store: VoteStore) -> None:
    name = store.add(comparison("base", "adapter"))
    with pytest.raises(ConfigError, match="'merged' was not shown; choose from base, adapter, tie, all bad"):
        store.vote(name, "merged")
    store.vote(name, TIE)
    with pytest.raises(RequestError, match="has its vote already"):
        store.vote(name, "base")
    with pytest.raises(RequestError, match="there is no comparison 'nothing'"):
        store.vote("nothing", TIE)
    assert store.count("run") == 1


def test_votes_on_the_adapter_before_the_run_was_resumed_are_told_and_not_counted(store: VoteStore) -> None:
    cast(store, "base", 2)
    now = time.time()
    since = {"adapter": now, "base": 0.0}.__getitem__  # of each column its own
    assert tables.vote_counts(store.tally("run", since)).startswith("0 votes: 0 ties, 0 all bad. Not counted: 2 votes")
    cast(store, "adapter", 1)
    tally = store.tally("run", since)
    assert (tally.votes, tally.earlier, tally.rates[0].column) == (1, 2, "adapter")
    assert "Not counted: 2 votes on an adapter before its run was resumed." in tables.vote_counts(tally)


def test_win_rates_count_only_where_a_column_was_shown(store: VoteStore) -> None:
    cast(store, "adapter", 6)
    cast(store, "base", 1)
    cast(store, TIE, 2)
    cast(store, ALL_BAD, 1)
    cast(store, "merged", 5, ("merged", "base"))
    tally = store.tally("run")
    assert (tally.votes, tally.ties, tally.all_bad) == (15, 2, 1)
    rates = {one.column: (one.wins, one.shown) for one in tally.rates}
    assert rates == {"merged": (5, 5), "adapter": (6, 10), "base": (1, 15)}
    assert all(one.low <= one.rate <= one.high for one in tally.rates)


def test_few_votes_are_said_not_to_separate_the_columns(store: VoteStore) -> None:
    cast(store, "adapter", 3)
    cast(store, "base", 1)
    assert store.tally("run").verdict == "The votes do not separate adapter from base: 3 against 1 of 4 (p = 0.62)."


def test_many_votes_do(store: VoteStore) -> None:
    cast(store, "adapter", 14)
    cast(store, "base", 2)
    cast(store, TIE, 3)
    assert store.tally("run").verdict == "adapter was preferred to base in 14 of 16 decided votes (p = 0.0042)."


def test_the_one_that_won_where_both_were_shown_is_the_one_preferred(store: VoteStore) -> None:
    cast(store, "adapter", 80, ("base", "adapter"))
    cast(store, "merged", 14, ("adapter", "merged"))
    cast(store, "adapter", 4, ("adapter", "merged"))
    assert store.tally("run").rates[0].column == "adapter"
    assert store.tally("run").verdict == "merged was preferred to adapter in 14 of 18 decided votes (p = 0.031)."
    cast(store, "adapter", 6, ("adapter", "merged"))
    cast(store, TIE, 3, ("adapter", "merged"))
    assert store.tally("run").verdict.endswith("merged from adapter: 14 against 10 of 27 (p = 0.54).")


def test_columns_that_never_met_are_not_compared(store: VoteStore) -> None:
    cast(store, "adapter", 3, ("adapter", "base"))
    cast(store, "merged", 4, ("merged", "base"))
    assert store.tally("run").verdict == "adapter and merged were never shown together."


def test_no_votes_is_said_and_makes_no_file(store: VoteStore) -> None:
    assert store.tally("run").verdict == "No votes yet."
    assert not store.path.exists()


def test_the_interval_and_the_test_are_the_textbook_ones() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927, z = 1.96
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert sign_test(9, 1) == pytest.approx(22 / 1024)  # 2 * (C(10,0) + C(10,1)) / 2^10
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 0) == 1.0


def test_several_threads_lose_no_vote(store: VoteStore) -> None:
    threads = [threading.Thread(target=cast, args=(store, "base", 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count("run") == 80
    with sqlite3.connect(store.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_first_two_users_at_once_wait_for_each_other(store: VoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.path.parent.mkdir()
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr("qlora_demo.results.votes.time.sleep", lambda _: other.rollback())
        store.vote(store.add(comparison("base", "adapter")), "base")
    assert store.count("run") == 1


def test_a_file_that_somebody_else_writes_for_long_is_not_called_damaged(
    store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.add(comparison("base", "adapter"))
    monkeypatch.setattr("qlora_demo.results.votes._PATIENCE", 0.0)
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WorkError, match=r"database is locked; somebody else is writing it; try again$"):
            store.vote(name, "base")
    store.vote(name, "base")


def test_a_damaged_file_is_named_and_left_alone(store: VoteStore) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(b"not a database, but somebody's file")
    with pytest.raises(WorkError, match=r"votes\.sqlite3: file is not a database"):
        store.add(comparison("base", "adapter"))
    assert store.path.read_bytes() == b"not a database, but somebody's file"
