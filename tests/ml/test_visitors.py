"""Visitors chat over HTTP with a real engine: within limits, in a queue, with what is finished, and leave no trace."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.catalog import SMOLLM2
from qlora_demo.compose import build_services
from qlora_demo.errors import NoRoom, RunError
from qlora_demo.records import Column
from qlora_demo.settings import Limits, Settings
from qlora_demo.system.halt import Halt
from qlora_demo.visitors.access import Visitor
from qlora_demo.visitors.visiting import evicts_nothing, finished_only
from tests.calls import Client, numbers, opened, values
from tests.ml.test_variants import finished_run

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
LIMITS = Limits(visitor_new_tokens=64, visitor_prompt_chars=50, visitor_talk_chars=120, visitor_requests=6)
COLUMNS = ["base", "adapter"]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> SimpleNamespace:
    """A launched app with a finished run of the tiny model, that ends with the tests."""
    home = tmp_path_factory.mktemp("home")
    services = build_services(Settings(home, password=PASSWORD, limits=replace(LIMITS, queue_length=2)))
    run = finished_run(services, tiny_model, "qlora")
    page = opened(services)
    [ask] = sorted(set(numbers(page, "ask")))[:1]
    return SimpleNamespace(home=home, services=services, page=page, url=str(page.local_url), run=run.id, ask=ask)


@pytest.fixture
def visitor(app: SimpleNamespace) -> Iterator[Client]:
    with Client(app.url) as client:
        client.open(app.page)
        yield client


def question(app: SimpleNamespace, **given: Any) -> list[Any]:
    handler = app.page.fns[app.ask]
    chosen = {"prompt": "hello", "chat_run": app.run, "columns": COLUMNS, "GenerationSettings_max_new_tokens": 8}
    return values(handler, **chosen | given)


def text_of(ended: dict[str, Any]) -> str:
    return str(ended["output"])


def until(holds: Callable[[], bool]) -> None:
    """Wait for what happens soon in another thread."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to hold")


def test_a_visitor_is_answered_by_a_finished_run(app: SimpleNamespace, visitor: Client) -> None:
    ended = visitor.call(app.ask, question(app))
    assert (ended["success"], ended["told"]) == (True, [])
    resident = {one.column.name for one in app.services.engine.resident()}
    assert resident == set(COLUMNS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"prompt": "x" * 51},
            "prompt: 51 characters are more than the 50 of QLORA_DEMO_VISITOR_PROMPT_CHARS",
        ),
        ({"system": "x" * 51}, "system prompt: 51 characters are more than the 50"),
        (
            {"GenerationSettings_max_new_tokens": 65},
            "max_new_tokens: 65 tokens are more than the 64 of QLORA_DEMO_VISITOR_NEW_TOKENS; ask for fewer",
        ),
        ({"columns": ["adapter@/etc"]}, "columns: 'adapter@/etc' is of no finished run here"),
        (
            {"columns": ["adapter@someone/something"]},
            "of no finished run here, and visitors choose among those",
        ),
    ],
)
def test_beyond_a_limit_a_visitor_is_refused_before_anything_runs(
    app: SimpleNamespace, visitor: Client, given: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.services.engine, "_make", None)
    monkeypatch.setattr(app.services.engine, "made", None)
    ended = visitor.call(app.ask, question(app, **given))
    assert says in " ".join(ended["told"])


def test_an_operator_is_not_held_to_visitors_limits(app: SimpleNamespace, visitor: Client) -> None:
    visitor.sign_in(PASSWORD)
    ended = visitor.call(app.ask, question(app, prompt="x" * 51))
    assert (ended["success"], ended["told"]) == (True, [])


def test_a_conversation_that_grows_too_long_ends(app: SimpleNamespace, visitor: Client) -> None:
    told: list[str] = []
    for _ in range(4):
        told += visitor.call(app.ask, question(app, prompt="y" * 45))["told"]
    assert "conversation: " in told[0] and "of QLORA_DEMO_VISITOR_TALK_CHARS; begin a new one with Clear" in told[0]


def test_too_many_requests_are_refused_with_the_time_to_wait(app: SimpleNamespace, visitor: Client) -> None:
    told = [visitor.call(app.ask, question(app, prompt=""))["told"] for _ in range(LIMITS.visitor_requests + 1)]
    assert all("prompt: it is empty" in one for (one,) in told[:-1])
    assert re.search(
        r"requests \(QLORA_DEMO_VISITOR_REQUESTS\): 6 in a minute is the most; try again in \d+ s", told[-1][0]
    )


def test_who_waits_sees_the_place_and_who_comes_too_late_is_refused(app: SimpleNamespace, visitor: Client) -> None:
    with app.services.waiting.turn(Visitor("operator"), Halt()) as places:
        assert list(places) == []
        assert visitor.join(app.ask, question(app)).status_code == 200
        until(lambda: app.services.waiting.waiting == 1)
        with Client(app.url) as late:
            late.open(app.page)
            told = late.call(app.ask, question(app))["told"]
        assert "queue: 1 waiting for an answer, 1 of them from your address; 2 (QLORA_DEMO_QUEUE_LENGTH)" in told[0]
    said = list(visitor.results())
    assert "Place 1 in the queue: you are next." in str(said)
    assert said[-1]["msg"] == "process_completed" and said[-1]["success"]


@pytest.mark.parametrize("waits", [True, False])
def test_who_goes_away_gives_the_place_up(app: SimpleNamespace, visitor: Client, waits: bool) -> None:
    waiting, held = app.services.waiting, threading.Event()

    def block() -> None:
        with waiting.turn(Visitor("operator"), Halt()) as places:
            list(places)
            held.wait()

    blocker = threading.Thread(target=block, daemon=True)
    if waits:
        blocker.start()
        until(lambda: waiting.answering)
    question_ = question(app, GenerationSettings_max_new_tokens=64, prompt="zz")
    assert visitor.join(app.ask, question_).status_code == 200
    with visitor.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": visitor.session}) as stream:
        for line in stream.iter_lines():
            if ("Place 1 in the queue" if waits else "process_generating") in line:
                break
        time.sleep(waits)  # nothing new is there to be told
    until(lambda: waiting.waiting == 0)
    held.set()
    if waits:
        blocker.join()
    until(lambda: not waiting.answering)
    with Client(app.url) as other:
        other.open(app.page)
        assert other.call(app.ask, question(app))["success"]


def test_columns_of_unfinished_runs_are_not_for_visitors(app: SimpleNamespace) -> None:
    column = Column("adapter", "adapter", app.run)
    finished_only(app.services.runs, [column])
    for source in ("/etc", "../runs", "someone/something", "20260101-000000-qlora-0000"):
        with pytest.raises(RunError, match="is of no finished run here"):
            finished_only(app.services.runs, [replace(column, source=source)])


def test_a_bundled_model_as_it_is_is_for_visitors_too(app: SimpleNamespace) -> None:
    finished_only(app.services.runs, [Column("base", "base", SMOLLM2.name)])
    with pytest.raises(RunError, match="is of no finished run here"):
        finished_only(app.services.runs, [Column("merged", "merged", SMOLLM2.name)])


def test_what_would_push_models_out_is_refused(app: SimpleNamespace) -> None:
    plan = app.services.plan([Column("adapter", "adapter", app.run)])
    unit = plan.places[0].unit
    with pytest.raises(NoRoom, match=r"would push out 4-bit base, which only operators may; choose what is loaded"):
        evicts_nothing(lambda _: replace(plan, evict=((unit, 1),)), [Column("adapter", "adapter", app.run)])
