"""Ended runs to a hub repository on this machine, with the library's own client over real HTTP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import WorkError
from qlora_demo.hub import HuggingFaceHub
from qlora_demo.records import Note, RunState, Status
from qlora_demo.runs import Run, write_state
from qlora_demo.services import Services
from qlora_demo.upkeep import syncing
from qlora_demo.upkeep.syncing import Syncer
from tests.hub_server import OWNERS_TOKEN, HubServer

REPO = "ada/runs"


@pytest.fixture
def make(services: Services, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Syncer]:
    """What a start of the app makes: a syncer that knows of nothing yet."""
    monkeypatch.setenv("HF_TOKEN", OWNERS_TOKEN)
    hub_server.lfs = (".safetensors",)
    settings = replace(services.settings, sync_repo=REPO)
    return lambda: Syncer(replace(services, settings=settings, hub=HuggingFaceHub(hub_server.url)))


def ended(services: Services, status: Status = "finished") -> Run:
    """A run with everything in its folder."""
    run = services.runs.create(TrainConfig())
    for name in (
        "adapter/adapter_config.json",
        "report/report.html",
        "metrics.jsonl",
        "train.log",
        "heldout/test.jsonl",
    ):
        path = run.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name, "utf-8")
    (run.path / "adapter/adapter_model.safetensors").write_bytes(os.urandom(100_000))
    (run.path / "adapter/link.json").symlink_to("/etc/passwd")
    write_state(run.path, RunState(status=status))
    return run


def commits(server: HubServer) -> int:
    return sum("/commit/" in request for request in server.requests)


def test_an_ended_run_is_there_but_for_its_log_and_its_rows(
    make: Callable[[], Syncer], services: Services, hub_server: HubServer
) -> None:
    run, waiting = ended(services), ended(services, "queued")
    syncer = make()
    assert syncer.pending
    syncer.look()
    names = {name.removeprefix(f"runs/{run.id}/") for name in hub_server.files(REPO)}
    weights = {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    assert names == weights | {"config.json", "state.json", "metrics.jsonl", "report/report.html"}
    sent = hub_server.files(REPO)[f"runs/{run.id}/adapter/adapter_model.safetensors"]
    assert sent == (run.adapter / "adapter_model.safetensors").read_bytes()
    assert not any(waiting.id in name for name in hub_server.files(REPO))
    assert hub_server.private == {REPO: True}
    assert (syncer.note(), syncer.pending) == (Note("sync: 1 runs are at ada/runs"), False)


def test_a_look_without_changes_asks_nothing_and_a_restart_sends_nothing_again(
    make: Callable[[], Syncer], services: Services, hub_server: HubServer
) -> None:
    ended(services)
    syncer = make()
    syncer.look()
    asked = len(hub_server.requests)
    syncer.look()
    assert len(hub_server.requests) == asked
    make().look()
    after_restart = hub_server.requests[asked:]
    assert after_restart and not any("commit" in one or "/v1/" in one or "lfs" in one for one in after_restart)


def test_only_what_changed_is_sent(make: Callable[[], Syncer], services: Services, hub_server: HubServer) -> None:
    run = ended(services)
    make().look()
    uploads = sum("/v1/" in one for one in hub_server.requests)
    (run.path / "report" / "report.html").write_text("a newer report", "utf-8")
    (run.path / "report" / "report.json").write_text("{}", "utf-8")
    make().look()
    assert hub_server.files(REPO)[f"runs/{run.id}/report/report.html"] == b"a newer report"
    assert f"runs/{run.id}/report/report.json" in hub_server.files(REPO)
    assert (commits(hub_server), sum("/v1/" in one for one in hub_server.requests)) == (2, uploads)


def test_an_upload_that_breaks_is_told_once_and_goes_on_where_it_was(
    make: Callable[[], Syncer], services: Services, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, object]] = []
    monkeypatch.setattr(
        "qlora_demo.system.logs.event", lambda name, *_, **facts: logged.append((name, facts.get("sent")))
    )
    first, second = ended(services), ended(services)
    syncer = make()
    hub_server.trouble = {"/commit/": 503}
    monkeypatch.setattr("huggingface_hub.utils._http._DEFAULT_RETRY_ON_STATUS_CODES", ())
    syncer.look()
    syncer.look()
    assert [name for name, _ in logged] == ["sync.failed"]
    note = syncer.note()
    assert (
        note.bad and note.text.startswith("sync: ada/runs: the hub failed (HTTP 503") and OWNERS_TOKEN not in note.text
    )
    assert f"run {second.id} and 1 more" in note.text or f"run {first.id} and 1 more" in note.text
    assert syncer.pending
    hub_server.trouble = {}
    syncer.look()
    assert logged[1:] == [("sync.ended", 6), ("sync.ended", 6)]
    assert {name.split("/")[1] for name in hub_server.files(REPO)} == {first.id, second.id}
    assert not syncer.note().bad and not syncer.pending


def test_a_run_that_is_refused_keeps_no_other_one_here(
    make: Callable[[], Syncer], services: Services, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, old, newest = sorted((ended(services) for _ in range(3)), key=lambda run: run.id)
    syncer, send = make(), HuggingFaceHub.sync

    def refuses(self: HuggingFaceHub, files: Mapping[str, Path], *args: Any, **kwargs: Any) -> int:
        if any(newest.id in name for name in files):
            raise WorkError("the hub refused")
        return send(self, files, *args, **kwargs)

    monkeypatch.setattr(HuggingFaceHub, "sync", refuses)
    syncer.look()
    assert {name.split("/")[1] for name in hub_server.files(REPO)} == {older.id, old.id}
    assert syncer.note() == Note(f"sync: the hub refused (run {newest.id})", bad=True)
    assert syncer.pending


def test_what_is_half_written_is_not_sent(
    make: Callable[[], Syncer], services: Services, hub_server: HubServer
) -> None:
    run = ended(services)
    for folder in ("adapter", "report"):
        (run.path / folder / ".half.77-140").write_text("half", "utf-8")
    make().look()
    assert hub_server.files(REPO) and not any("half" in name for name in hub_server.files(REPO))


@pytest.mark.parametrize(
    ("token", "words"), [("", "token: is empty"), ("hf_wrongwrong", "the token may not write there")]
)
def test_a_token_that_is_missing_or_wrong_is_told(
    make: Callable[[], Syncer], services: Services, token: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    ended(services)
    syncer = make()
    syncer.look()
    assert syncer.note().bad and words in syncer.note().text
    assert not token or token not in syncer.note().text


def test_nothing_goes_to_a_public_repository(
    make: Callable[[], Syncer], services: Services, hub_server: HubServer
) -> None:
    hub_server.private[REPO] = False
    ended(services)
    syncer = make()
    syncer.look()
    assert "exists already and is public" in syncer.note().text
    assert hub_server.files(REPO) == {}


@pytest.mark.parametrize(("calls", "bad"), [(1, False), (2, True)])
def test_a_run_that_vanishes_while_it_is_looked_at_or_sent_is_no_harm(
    make: Callable[[], Syncer], services: Services, monkeypatch: pytest.MonkeyPatch, calls: int, bad: bool
) -> None:
    run = ended(services)
    found, asked = syncing._files, []

    def vanishing(of: Run) -> list[Path]:
        files = found(of)
        asked.append(of.id)
        if len(asked) == calls:
            shutil.rmtree(run.path)
        return files

    monkeypatch.setattr(syncing, "_files", vanishing)
    syncer = make()
    syncer.look()
    assert syncer.note().bad is bad
    syncer.look()
    assert syncer.note() == Note("sync: 0 runs are at ada/runs")


def test_a_file_that_vanishes_is_no_reason_not_to_know_what_is_pending(
    make: Callable[[], Syncer], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(services)
    syncer = make()
    syncer.look()
    gone = run.path / "report" / "report.html"
    monkeypatch.setattr(syncing, "_files", lambda of: [run.path / "config.json", gone])
    gone.unlink()
    assert syncer.pending
