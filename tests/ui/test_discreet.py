"""Visitors are not told where on this machine the home lies, whatever they look at or do."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import pytest

from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, DataError, FetchError
from qlora_demo.records import Progress, RunState, Step
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from qlora_demo.ui.discreet import Discreet
from tests.abandoned import abandoned
from tests.calls import Client, numbers, opened, values
from tests.queueing import until

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
ADDRESS = "https://huggingface.co/ada/not-public/commit/1"
HOME = Path("/data/qlora & demo")
SHAPE = {"num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 9}
FILE = f"{HOME}/uploads/mine.jsonl"


def filled(services: Services) -> str:
    """A home where much names files of it; a run's name."""
    model = services.settings.models / "mine"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(SHAPE), "utf-8")
    (model / "model.safetensors").touch()
    config = TrainConfig(model=str(model), dataset=str(services.settings.uploads / "mine.jsonl"))
    abandoned(services.benchmarks, BenchmarkConfig(), config)
    run = services.runs.create(config)
    write_state(run.path, RunState("failed", error=f"dataset: {config.dataset}, line 7"))
    return run.id


@pytest.mark.parametrize("role", ["visitor", "operator"])
def test_nothing_that_a_page_shows_or_does_tells_visitors_where_the_home_lies(services: Services, role: str) -> None:
    run = filled(services)
    page = opened(build_services(replace(services.settings, password=PASSWORD)))
    shown, told = "", ""
    with Client(str(page.local_url)) as client:
        if role == "operator":
            client.sign_in(PASSWORD)
        opening = [one for one in page.fns.items() if any(event == "load" for _, event in one[1].targets)]
        for number, handler in (*opening, *page.fns.items()):
            if getattr(handler.fn, "needs", "") == "visitor" and handler.name not in ("greedy", "new_seed"):
                answer = client.call(number, values(handler, run=run, judge_run=run, compare_runs=[run], talk_run=run))
                shown += str(answer.get("output"))
                for address in re.findall(r"'url': '([^']+)'", str(answer.get("output"))):
                    shown += client.http.get(address).text
                told += str(answer["told"])
        shown += client.http.get("/config").text
    assert "uploads/mine.jsonl" in shown and "models/mine" in shown
    assert (str(services.settings.home) in shown) == (role == "operator")
    assert role == "operator" or str(services.settings.home) not in told


@pytest.mark.parametrize("error", ["", "upload: 403 at the hub"])
def test_what_a_job_did_and_where_is_for_operators(services: Services, error: str) -> None:
    run = services.runs.create(TrainConfig())
    guarded = build_services(replace(services.settings, password=PASSWORD))
    page = opened(guarded)
    polls = numbers(page, "poll", "redraw")
    lines = [f"push of {run.id}: in progress", f"push of {run.id}: {'failed' if error else 'ended'}"]

    def job_line(client: Client) -> set[str]:
        return {client.call(one, values(page.fns[one], judge_run=run.id))["output"]["data"][0] for one in polls}

    go = threading.Event()

    def work(halt: Halt) -> Iterator[Step]:
        yield Step(Progress(f"sent to {ADDRESS}", 0.5))
        go.wait()
        if error:
            raise FetchError(error)

    with Client(str(page.local_url)) as operator, Client(str(page.local_url)) as visitor:
        operator.sign_in(PASSWORD)
        guarded.jobs.start("push", run.id, work, models=False)
        until(lambda: ADDRESS in "".join(job_line(operator)))
        assert job_line(visitor) == {f"<p>{lines[0]}</p>"}
        go.set()
        until(lambda: not guarded.jobs.going)
        assert (error or ADDRESS) in "".join(job_line(operator))
        assert job_line(visitor) == {f"<p>{lines[1]}</p>"}
    page.close()


def test_text_in_whatever_form_is_told_from_the_home_on_and_files_and_states_are_left() -> None:
    discreet = Discreet(HOME)
    table = pd.DataFrame([[FILE, 1]], columns=["data", "rank"])
    text, update, drawn, sent, state = discreet.drawn(
        (f"<b>{escape(FILE)}</b>", gr.update(choices=[(FILE, "a")], value=FILE), table, gr.File(None), {"seen": FILE}),
        [gr.HTML(), gr.Dropdown(), gr.Dataframe(), gr.File(), gr.State()],
    )
    assert text == "<b>uploads/mine.jsonl</b>"
    assert update["choices"] == [("uploads/mine.jsonl", "a")] and update["value"] == "uploads/mine.jsonl"
    assert drawn.values.tolist() == [["uploads/mine.jsonl", 1]]
    assert isinstance(sent, gr.File) and state == {"seen": FILE}
    assert discreet.drawn(f"in {HOME}. See file://{FILE}, not {HOME}2/x, {HOME}.old, nor /a{HOME}/x", [gr.HTML()]) == (
        f"in the home. See file://uploads/mine.jsonl, not {HOME}2/x, {HOME}.old, nor /a{HOME}/x"
    )


@pytest.mark.parametrize("error", [DataError(f"{FILE}: row 1 is empty"), ConfigError("dataset", f"{FILE}: is gone")])
def test_errors_keep_their_kind_and_their_words(error: Any) -> None:
    with pytest.raises(type(error)) as caught, Discreet(HOME).errors():
        raise error
    assert "uploads/mine.jsonl: " in str(caught.value) and str(HOME) not in str(caught.value)
