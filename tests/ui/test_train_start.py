"""Start on the Train tab: nobody's waits for another's data to be read, and two clicks at once are one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.engine import OnDemand
from qlora_demo.errors import DataError
from qlora_demo.records import Progress, Step
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from qlora_demo.ui.train_tab import Pressed
from tests.calls import Client, numbers, opened, values
from tests.queueing import until

pytestmark = pytest.mark.slow

MODEL = "shape:smollm2-135m"
PASSWORD = "correct horse"


class Reader:
    """An engine that reads data until it is let go, and then finds nothing in it."""

    def __init__(self) -> None:
        self.go, self.reading = threading.Event(), 0

    def resident(self) -> tuple[Any, ...]:
        return ()

    def preflight(self, config: TrainConfig, halt: Halt) -> Iterator[Step]:
        self.reading += 1
        while not self.go.wait(0.01):
            yield Step(Progress("7 rows"))
        self.reading -= 1
        raise DataError("dataset: nothing to train")


@pytest.fixture
def app(services: Services) -> Iterator[SimpleNamespace]:
    """A guarded app whose data is read without an end; its page, and its store of runs."""
    reader = Reader()
    engine: Any = OnDemand(lambda: reader)  # type: ignore[arg-type, return-value]
    made = replace(build_services(replace(services.settings, password=PASSWORD)), engine=engine)
    made.checks._preflight = reader.preflight
    page = opened(made)
    yield SimpleNamespace(page=page, reader=reader, services=made, url=str(page.local_url))
    reader.go.set()
    until(lambda: not made.checks.at_work)
    page.close()


def press(app: SimpleNamespace, client: Client, name: str) -> None:
    """Click a button and wait for nothing."""
    [number] = numbers(app.page, name)
    assert client.join(number, values(app.page.fns[number], TrainConfig_model=MODEL)).status_code == 200


@pytest.mark.parametrize(("button", "made"), [("begin", 1), ("begin_pair", 2)])
def test_a_start_while_another_s_data_is_read_is_a_run_at_once(app: SimpleNamespace, button: str, made: int) -> None:
    runs = app.services.runs
    with Client(app.url) as one, Client(app.url) as other:
        for client in (one, other):
            client.sign_in(PASSWORD)
            press(app, client, button)
            until(lambda: len(runs.names()) >= made, 20)
        until(lambda: len(runs.names()) == 2 * made, 20)
        assert app.reader.reading == 1
        app.reader.go.set()
        said = [[message["log"] for message in client.results() if message["msg"] == "log"] for client in (one, other)]
    assert all("dataset: nothing to train" in told for told in said)


def test_one_page_starts_another_run_too_but_a_double_click_starts_one(
    app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, seen, twice = app.services.runs, list[bool](), Pressed.twice

    def counted(pressed: Pressed) -> bool:
        seen.append(twice(pressed))
        return seen[-1]

    monkeypatch.setattr(Pressed, "twice", counted)
    with Client(app.url) as client:
        client.sign_in(PASSWORD)
        for seconds, expected, made in ((60, [False], 1), (60, [False, True], 1), (0, [False, True, False], 2)):
            monkeypatch.setattr("qlora_demo.ui.train_tab._DOUBLE_CLICK_SECONDS", seconds)
            press(app, client, "begin")
            until(lambda: len(seen) == len(expected), 20)  # noqa: B023 - called before the next turn
            assert seen == expected
            until(lambda: len(runs.names()) == made, 20)  # noqa: B023
        app.reader.go.set()
        assert [one["success"] for one in client.results() if one["msg"] == "process_completed"] == [True] * 3


def test_a_click_long_after_another_is_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 5.3, 6.2, 7.3])
    monkeypatch.setattr("qlora_demo.ui.train_tab.time", SimpleNamespace(monotonic=lambda: next(times)))
    pressed = Pressed()
    assert [pressed.twice() for _ in range(4)] == [False, True, True, False]


def test_every_page_s_data_is_checked_at_once(app: SimpleNamespace) -> None:
    [number] = numbers(app.page, "check")
    assert app.page.fns[number].trigger_mode == "always_last", "a press while data is read is not lost"
    with Client(app.url) as one, Client(app.url) as other:
        for client in (one, other):
            client.sign_in(PASSWORD)
            press(app, client, "check")
        until(lambda: app.reader.reading == 2, 20)
        app.reader.go.set()
        for client in (one, other):
            list(client.results())


def test_a_click_on_a_page_that_waits_is_sent(app: SimpleNamespace) -> None:
    """Gradio's own way is to drop it."""
    for name in ("begin", "begin_pair"):
        [number] = numbers(app.page, name)
        assert app.page.fns[number].trigger_mode == "multiple"
