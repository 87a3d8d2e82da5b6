"""Start looks at the data first: what training could not use is refused at once, whether the device is free or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.services import Services
from qlora_demo.ui.data_panel import follow
from tests.calls import Client, numbers, opened, values
from tests.queueing import until

pytestmark = pytest.mark.slow


@pytest.fixture
def start(services: Services, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Press a button for a data set while something else holds the device; the messages, and what the panel shows."""
    monkeypatch.setattr("qlora_demo.gpu._EXIT_SECONDS", 0.1)
    page = opened(services)
    held = services.launcher.lease.acquire("benchmark")

    def press(name: str, rows: Path | str) -> tuple[str, list[str]]:
        (number,) = numbers(page, name)
        chosen = {"TrainConfig_model": str(tiny_model), "TrainConfig_dataset": str(rows), "TrainConfig_max_length": 64}
        with Client(str(page.local_url)) as client:
            client.join(number, values(page.fns[number], **chosen))
            told = list(client.results())
        drawn = [message["output"]["data"][0] for message in told if "data" in message.get("output", {})]
        return " | ".join(message["log"] for message in told if message["msg"] == "log"), list(map(str, drawn))

    yield press
    held.release()
    page.close()


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


GOOD = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(6)]


@pytest.mark.parametrize("button", ["begin", "begin_pair"])
def test_a_row_that_cannot_be_used_is_refused_with_its_place_and_leaves_no_run(
    services: Services, start: Any, tmp_path: Path, button: str
) -> None:
    rows = write(tmp_path / "rows.jsonl", *GOOD, {"prompt": "q", "completion": ""})
    told, drawn = start(button, rows)
    assert f"dataset: {rows}, line 7, message 2: has no answer" in told
    assert any("Cannot be used: 1 row</b> (must be fixed)" in one and "line 7" in one for one in drawn)
    assert services.runs.names() == []


@pytest.mark.processes
def test_what_is_only_told_lets_the_run_wait(services: Services, start: Any, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *GOOD, *GOOD[:2])
    told, drawn = start("begin", rows)
    assert "appears more than once: 2 rows" in told and "waits until the device is free" in told
    assert any("<b>8 rows</b>" in one for one in drawn)
    assert [run.state.status for run in services.runs.all()] == ["queued"]


def test_models_of_the_chat_make_room_and_that_is_said(
    services: Services, start: Any, chat_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [object()]
    monkeypatch.setattr(services.engine, "resident", lambda: tuple(held))
    monkeypatch.setattr(services.engine, "release", held.clear)
    told, _ = start("begin", chat_file)
    assert "The chat's models were freed to make room for training" in told


def test_a_file_that_is_missing_is_told_in_the_panel_too(services: Services, start: Any) -> None:
    told, drawn = start("begin", "./nothing.jsonl")
    assert "there is no file" in told
    assert any("there is no file" in one for one in drawn)
    assert services.runs.names() == []


@pytest.mark.processes
def test_good_data_lets_both_runs_of_a_pair_wait(services: Services, start: Any, chat_file: Path) -> None:
    start("begin_pair", chat_file)
    assert [run.state.status for run in services.runs.all()] == ["queued", "queued"]


def test_a_page_that_is_closed_at_once_takes_nothing_with_it(
    services: Services, chat_file: Path, tiny_model: Path
) -> None:
    page = opened(services)
    (number,) = numbers(page, "begin")
    chosen = {"TrainConfig_model": str(tiny_model), "TrainConfig_dataset": str(chat_file), "TrainConfig_max_length": 64}
    held = services.launcher.lease.acquire("benchmark")
    with Client(str(page.local_url)) as client:
        client.join(number, values(page.fns[number], **chosen))
        next(message for message in client.results() if message["msg"] == "log")
    until(lambda: [run.state.status for run in services.runs.all()] == ["queued"])
    (run,) = services.runs.all()
    assert (run.config.dataset, run.config.max_length) == (str(chat_file), 64)
    held.release()
    page.close()


def test_what_was_refused_when_the_page_was_closed_is_told_to_who_comes_back(
    services: Services, tmp_path: Path, tiny_model: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", *GOOD, {"prompt": "q", "completion": ""})
    config = TrainConfig(model=str(tiny_model), dataset=str(rows), max_length=64)
    (run,) = services.checks.submit([config], 1)
    until(lambda: services.runs.get(run.id).state.refused)
    page = opened(services)
    with Client(str(page.local_url)) as client:
        drawn = [client.call(number, values(page.fns[number], run=run.id)) for number in numbers(page, "look")]
    assert "line 7, message 2: has no answer" in str(drawn)
    assert services.runs.get(run.id).state.refused
    page.close()


def test_a_run_that_is_deleted_while_it_is_followed_is_let_go(services: Services, chat_file: Path) -> None:
    run = services.runs.create(TrainConfig(dataset=str(chat_file)), RunState("checking"))
    drawn = follow(services, [run])
    assert next(drawn) == "<p>Waiting for other data to be read</p>"
    services.runs.delete(run.id)
    assert list(drawn) == [""]
