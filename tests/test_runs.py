"""RunStore: a run is a directory; what is read from it is whole, or is named as damaged."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import RunError
from qlora_demo.records import Choice, RunState, TrainMetrics
from qlora_demo.runs import Run, RunStore, append_metrics, read_state, write_state
from qlora_demo.system.disk import write_atomically
from qlora_demo.system.locks import HeldLock

GONE = "20260101-000000-qlora-0000"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """An empty store in a folder that does not exist yet."""
    return RunStore(tmp_path / "runs")


@pytest.fixture
def run(store: RunStore) -> Run:
    """One run, just created."""
    return store.create(TrainConfig(r=8))


def hold(run: Run) -> HeldLock:
    """The lock that a training process holds."""
    lock = HeldLock.acquire(run.lock, {})
    assert lock is not None
    return lock


def test_an_empty_store_has_no_runs(store: RunStore) -> None:
    assert (store.all(), store.names(), store.active()) == ([], [], None)


def test_a_created_run_is_found_again_with_its_config(store: RunStore, run: Run) -> None:
    again = RunStore(store.root).get(run.id)
    assert again == run
    assert (again.config, again.state, again.has_adapter) == (TrainConfig(r=8), RunState("created"), False)


def test_a_created_run_leaves_no_draft_and_explains_itself(store: RunStore, run: Run) -> None:
    assert [path.name for path in store.root.iterdir()] == [run.id]
    assert sorted(path.name for path in run.path.iterdir()) == ["README", "config.json", "state.json"]
    assert json.loads((run.path / "config.json").read_text("utf-8"))["r"] == 8


def test_a_run_finds_its_files_from_any_folder_and_what_is_known_by_name_stays_a_name(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("org/model", "smollm2-135m-instruct", "shape:tiny", "org/rows"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("rows.jsonl", "tickets"):
        (tmp_path / file).touch()

    def made(model: str, dataset: str) -> tuple[str, str]:
        config = store.create(TrainConfig(model=model, dataset=dataset)).config
        return config.model, config.dataset

    assert made("org/model", "rows.jsonl") == (str(tmp_path / "org/model"), str(tmp_path / "rows.jsonl"))
    for names in (("smollm2-135m-instruct", "tickets"), ("shape:tiny", "org/rows"), ("org/other", "gone.jsonl")):
        assert made(*names) == names
    assert made("x" * 300, "x" * 300) == ("x" * 300, "x" * 300)


def test_runs_are_listed_newest_first(store: RunStore, run: Run) -> None:
    older = store.root / GONE.replace("2026", "2020")
    (store.root / run.id).rename(older)
    newer = store.create(TrainConfig())
    assert [one.id for one in store.all()] == [newer.id, older.name]


def test_a_deleted_run_leaves_nothing(store: RunStore, run: Run) -> None:
    store.delete(run.id)
    assert list(store.root.iterdir()) == []
    with pytest.raises(RunError, match=f"^run '{run.id}': no such run"):
        store.get(run.id)


STRANGE_NAMES = ["", ".", "..", "/", "/etc", "a/b", "outside", "../runs", "\0", "\n", f"{GONE}\n", f"{GONE}/.."]
STRANGE_NAMES += [f"../runs/{GONE}", GONE.replace("2026", "٢٠٢٦"), GONE.upper(), GONE]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_name_that_is_not_a_run_of_the_store_is_refused(store: RunStore, run: Run, name: str) -> None:
    (store.root.parent / "outside").mkdir()
    for refuse in (store.get, store.delete, store.path, store.request_stop, store.heldout, store.metrics):
        with pytest.raises(RunError, match="no such run"):
            refuse(name)
    assert store.get(run.id) == run


@pytest.mark.parametrize(
    "detour", ["{id}/", "{id}/.", "{id}/heldout", "{id}/../{id}", "./{id}", "../runs/{id}", "{id}\n"]
)
def test_a_run_has_no_other_name_than_its_own(store: RunStore, run: Run, detour: str) -> None:
    (run.path / "heldout").mkdir()
    with pytest.raises(RunError, match="no such run"):
        store.get(detour.format(id=run.id))


def test_a_link_to_a_directory_is_not_a_run(store: RunStore, run: Run, tmp_path: Path) -> None:
    run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="no such run"):
        store.delete(run.id)
    assert (tmp_path / "elsewhere" / "config.json").exists()
    assert store.all() == []


def test_a_state_survives_writing_and_leaves_no_draft(run: Run) -> None:
    state = RunState("finished", 10, 1.5, 2.5, "err\nör", choices=(Choice("a", "b", "c"),), summary={"loss": 0.1})
    before = sorted(run.path.iterdir())
    write_state(run.path, state)
    assert read_state(run.path) == state
    assert sorted(run.path.iterdir()) == before


def test_metrics_are_read_on_from_where_one_stopped(store: RunStore, run: Run) -> None:
    first, second = TrainMetrics(1, 10.0, loss=2.5), TrainMetrics(2, 11.0, eval_loss=2.25)
    assert store.read_since(run.id, 0) == ([], 0)
    append_metrics(run.path, first)
    lines, offset = store.read_since(run.id, 0)
    assert lines == [first]
    append_metrics(run.path, second)
    lines, end = store.read_since(run.id, offset)
    assert lines == [second]
    assert store.read_since(run.id, end) == ([], end)
    assert store.metrics(run.id) == [first, second]


def test_a_half_written_last_line_is_left_until_it_is_whole(store: RunStore, run: Run) -> None:
    append_metrics(run.path, TrainMetrics(1, 10.0, loss=2.5))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "ti')
        file.flush()
        lines, offset = store.read_since(run.id, 0)
        assert [line.step for line in lines] == [1]
        assert store.read_since(run.id, offset) == ([], offset)
        file.write(b'me": 11.0}\n')
    assert [line.step for line in store.read_since(run.id, offset)[0]] == [2]


@pytest.mark.parametrize("wrong", [2 * 10**308, 1e308, -1.0, math.nan])
@pytest.mark.parametrize("field", ["time", "step_seconds"])
def test_a_line_whose_time_is_none_is_no_measurement(store: RunStore, run: Run, field: str, wrong: float) -> None:
    found: dict[str, Any] = {"step": 1, "time": 10.0, "loss": math.inf, "step_seconds": 0.5}
    lines = [json.dumps(one) for one in (found, found | {field: wrong})]
    (run.path / "metrics.jsonl").write_text("\n".join([*lines, ""]), "utf-8")
    assert store.metrics(run.id) == [TrainMetrics(**found)], "and a loss may be infinite"


@pytest.mark.parametrize("status", ["starting", "loading", "running"])
def test_a_run_whose_lock_is_held_reads_as_it_is(store: RunStore, run: Run, status: Any) -> None:
    write_state(run.path, RunState(status))
    lock = hold(run)
    held, active = store.get(run.id), store.active()
    lock.release()
    assert held.state.status == status
    assert active == held
    assert store.active() is None


@pytest.mark.parametrize("status", ["starting", "loading", "running"])
def test_a_dead_run_without_end_state_reads_as_failed_with_the_log_tail(store: RunStore, run: Run, status: Any) -> None:
    write_state(run.path, RunState(status, max_steps=7))
    (run.path / "train.log").write_bytes(b"first\n" + b"noise\n" * 2000 + b"10%\r99%\nKilled \xff\n")
    state = store.get(run.id).state
    assert (state.status, state.max_steps, state.ended) == ("failed", 7, True)
    assert "ended without reporting an error" in state.error
    assert state.error.endswith("; its log ends: noise; 99%; Killed \ufffd")
    assert read_state(run.path).status == status


def test_a_dead_run_ended_when_it_was_last_heard_of(store: RunStore, run: Run) -> None:
    write_state(run.path, RunState("running", started_at=1000.0))
    append_metrics(run.path, TrainMetrics(1, 1060.0, loss=1.0))
    for path in run.path.iterdir():
        os.utime(path, (1060, 1060))
    assert store.get(run.id).state.seconds(time.time()) == 60
    write_state(run.path, RunState("starting", started_at=1000.0, ended_at=1010.0))
    assert store.get(run.id).state.seconds(time.time()) == 10, "it was resumed and died before it began"


def test_a_dead_run_without_a_log_reads_as_failed_too(store: RunStore, run: Run) -> None:
    write_state(run.path, RunState("running"))
    assert store.get(run.id).state.status == "failed"
    assert store.log_tail(run.id) == ""


@pytest.mark.parametrize("status", ["created", "finished", "stopped", "failed"])
def test_a_run_that_ended_or_has_not_begun_reads_as_written(store: RunStore, run: Run, status: Any) -> None:
    write_state(run.path, RunState(status, error="its own"))
    assert store.get(run.id).state == RunState(status, error="its own")


def test_a_run_that_ends_between_read_and_probe_reads_as_ended(
    store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(_: Path) -> bool:
        write_state(run.path, RunState("finished"))
        return False

    write_state(run.path, RunState("running"))
    monkeypatch.setattr("qlora_demo.runs.is_held", ends)
    assert store.get(run.id).state.status == "finished"


def test_the_log_tail_is_the_last_lines(store: RunStore, run: Run) -> None:
    (run.path / "train.log").write_text("".join(f"line {n}\n" for n in range(100)), "utf-8")
    assert store.log_tail(run.id, 2).split("\n") == ["line 98", "line 99", ""]


TOKEN = "hf_oauth_eyJhbGci.eyJzdWIi.S1gnature"


@pytest.mark.parametrize("said", [f"401 for {TOKEN}\nend", f"{TOKEN} {'x' * 700}", f"{'x' * 60}{TOKEN} {'y ' * 390}"])
def test_the_log_tail_holds_no_token_and_no_rest_of_one(store: RunStore, run: Run, said: str) -> None:
    write_state(run.path, RunState("running"))
    (run.path / "train.log").write_text(said, "utf-8")
    for shown in (store.log_tail(run.id), store.log_tail(run.id, 2), store.get(run.id).state.error):
        assert not [part for part in ("eyJ", "S1gn") if part in shown]


def test_a_run_that_is_alive_is_not_deleted(store: RunStore, run: Run) -> None:
    lock = hold(run)
    with pytest.raises(RunError, match=f"^run {run.id}: still running; stop it first"):
        store.delete(run.id)
    lock.release()
    assert store.get(run.id) == run
    store.delete(run.id)
    assert store.names() == []


def test_a_stop_is_asked_of_a_live_run(store: RunStore, run: Run) -> None:
    write_state(run.path, RunState("running"))
    lock = hold(run)
    store.request_stop(run.id)
    lock.release()
    assert (run.path / "stop").exists()


def test_a_stop_is_left_for_a_queued_run_that_begins_meanwhile(store: RunStore, run: Run) -> None:
    write_state(run.path, RunState("queued"))
    store.request_stop(run.id)
    assert store.get(run.id).state.status == "stopped"
    assert (run.path / "stop").exists()


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_stop_of_an_ended_run_is_refused(store: RunStore, run: Run, status: Any) -> None:
    write_state(run.path, RunState(status))
    with pytest.raises(RunError, match=f"^run {run.id}: already {status}"):
        store.request_stop(run.id)
    assert not (run.path / "stop").exists()


DAMAGE = [
    ("config.json", b"{"),
    ("config.json", b"[]"),
    ("config.json", b'{"r": 0}'),
    ("config.json", b"\xff"),
    ("config.json", None),
    ("state.json", b"{"),
    ("state.json", b""),
    ("state.json", b"{}"),
    ("state.json", b"[]"),
    ("state.json", b'{"choices": []}'),
    ("state.json", b'{"choices": [], "status": "running", "other": 1}'),
    ("state.json", b'{"choices": 7, "status": "running"}'),
    ("state.json", b"\xff"),
    ("state.json", None),
    ("state.json", b"null"),
    ("state.json", b'"text"'),
    pytest.param("state.json", b"[" * 200_000, id="state.json-deep"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGE)
def test_a_damaged_file_is_an_error_that_names_the_run_and_the_others_are_still_listed(
    store: RunStore, run: Run, name: str, content: bytes | None
) -> None:
    other = store.create(TrainConfig())
    (run.path / name).unlink()
    if content is not None:
        (run.path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"^run {run.id}: cannot be read .*; delete it or restore its files"):
        store.get(run.id)
    assert store.all() == [other]
    store.delete(run.id)
    assert store.names() == [other.id]


def keep_heldout(run: Run, split: str, rows: list[dict[str, Any]]) -> None:
    """Write a split the way the training process does."""
    (run.path / "heldout").mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomically(run.path / "heldout" / f"{split}.jsonl", "\n".join(lines) + "\n")


def conversation(text: str) -> list[dict[str, str]]:
    """One user's turn."""
    return [{"role": "user", "content": text}]


def test_heldout_conversations_are_read_by_split_the_easier_one_first(store: RunStore, run: Run) -> None:
    assert store.heldout(run.id) == {}
    keep_heldout(run, "hard", [{"messages": conversation("grüße\n")}])
    keep_heldout(run, "test", [{"messages": conversation("a")}, {"messages": conversation("b")}])
    read = [("test", [conversation("a"), conversation("b")]), ("hard", [conversation("grüße\n")])]
    assert list(store.heldout(run.id).items()) == read


def test_heldout_rows_of_plain_text_hold_no_conversation(store: RunStore, run: Run) -> None:
    keep_heldout(run, "test", [{"text": "a"}])
    assert store.heldout(run.id) == {"test": []}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_heldout_row_may_hold_any_line_separator(store: RunStore, run: Run, separator: str) -> None:
    keep_heldout(run, "test", [{"messages": conversation(f"a{separator}b")}])
    assert store.heldout(run.id) == {"test": [conversation(f"a{separator}b")]}
