"""What is asked for has a name in the log, and it is known how long nothing has been."""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections.abc import Generator, Iterator

import gradio as gr
import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import RequestError
from qlora_demo.ml.worker import Worker
from qlora_demo.records import Progress, Step
from qlora_demo.services import Services
from qlora_demo.system import logs
from qlora_demo.system.halt import Halt
from qlora_demo.ui.told import told
from qlora_demo.upkeep.dispatch import Dispatcher
from qlora_demo.visitors.visits import VISITS, Visits
from tests.calls import Client, numbers, opened, values
from tests.queueing import until


class Kept(logging.Handler):
    """Every event with the request it belongs to."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.events: list[tuple[str, str, dict[str, object]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append((record.getMessage(), logs._REQUEST.get(), vars(record)["facts"]))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """What the app logs, and Gradio's messages unsaid."""
    handler, log = Kept(), logging.getLogger("qlora_demo")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr("gradio.Warning", lambda *_, **__: None)
    before = log.level
    log.setLevel(logging.INFO)  # which also forgets what was off before; the attribute alone would not
    yield handler
    log.setLevel(before)


def test_idle_is_the_time_since_the_last_visit_ended() -> None:
    now = [0.0]
    visits = Visits(lambda: now[0])
    now[0] = 5
    assert visits.idle_seconds() == 5
    with visits.one():
        now[0] = 9
        with visits.one():
            assert visits.idle_seconds() == 0
        assert visits.idle_seconds() == 0
    now[0] = 12
    assert visits.idle_seconds() == 3


def test_a_page_that_is_opened_or_looks_by_itself_is_no_visit(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits: list[int] = []
    monkeypatch.setattr(VISITS, "_count", visits.append)
    page = opened(services)
    by_itself = {
        number: {event for _, event in handler.targets} & {"load", "tick"} for number, handler in page.fns.items()
    }
    with Client(str(page.local_url)) as client:
        for number, events in by_itself.items():
            if events:
                client.call(number, values(page.fns[number]))
        assert visits == [] and {event for events in by_itself.values() for event in events} == {"load", "tick"}
        chosen = numbers(page, "redraw")[0]
        client.call(chosen, values(page.fns[chosen]))
        assert visits == [1, -1]
    page.close()


def test_each_handler_s_events_bear_a_request_of_their_own(kept: Kept) -> None:
    @told
    def handler() -> None:
        logs.event("one")
        logs.event("two")

    handler()
    handler()
    names = [request for _, request, _ in kept.events]
    assert names[0] == names[1] != names[2] == names[3]
    assert all(names) and not logs._REQUEST.get()


def test_a_generator_s_steps_bear_one_request_whatever_thread_makes_them(kept: Kept) -> None:
    @told
    def handler() -> Generator[int]:
        for number in range(3):
            logs.event(f"step {number}")
            yield number

    steps, made = handler(), []
    for _ in range(3):
        thread = threading.Thread(target=contextvars.Context().run, args=(lambda: made.append(next(steps)),))
        thread.start()
        thread.join()
    assert made == [0, 1, 2]
    assert len({request for _, request, _ in kept.events}) == 1 and kept.events[0][1]


def test_a_handler_that_is_left_early_is_closed_and_no_longer_going(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, visits = [], Visits()
    monkeypatch.setattr("qlora_demo.ui.told.VISITS", visits)

    @told
    def handler() -> Generator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    steps = handler()
    next(steps)
    assert visits.idle_seconds() == 0
    steps.close()
    assert closed == [True]
    assert visits._going == 0


@pytest.mark.parametrize("streams", [True, False])
def test_a_refusal_is_logged_by_its_kind_and_without_its_words(kept: Kept, streams: bool) -> None:
    def refuse() -> None:
        raise RequestError("prompt: 'my secret' is too long")

    def stream() -> Generator[int]:
        yield 1
        refuse()

    shown = list(told(stream)()) if streams else told(refuse)()
    assert shown
    ((event, request, facts),) = kept.events
    assert (event, facts["error"]) == ("request.refused", "RequestError") and request
    assert "secret" not in str(facts)


def test_a_refusal_hands_back_an_untouched_output_only_where_there_is_one(kept: Kept) -> None:
    def refuse() -> None:
        raise RequestError("prompt: it is empty")

    assert (told(refuse)(), told(refuse, draws=False)()) == (gr.skip(), None)


def test_the_models_thread_logs_under_the_name_of_who_asks(kept: Kept) -> None:
    worker = Worker()

    def steps() -> Generator[int]:
        logs.event("step")
        yield 1

    with logs.of(request="first"):
        worker.call(lambda: logs.event("called"))
    with logs.of(request="second"):
        assert list(worker.iterate(steps, Halt())) == [1]
    worker.call(lambda: logs.event("nobody"))
    assert [request for _, request, _ in kept.events] == ["first", "second", ""]


def test_a_job_logs_its_run_and_the_request_that_began_it(kept: Kept, services: Services) -> None:
    run = services.runs.create(TrainConfig())

    def work(halt: Halt) -> Iterator[Step]:
        yield Step(Progress("half", 0.5))
        logs.event("in the job", run_seen=logs._RUN.get())
        raise RequestError("no such row")

    with logs.of(request="r7"):
        services.jobs.start("evaluation", run.id, work)
    until(lambda: len(kept.events) > 2)
    assert [(event, request) for event, request, _ in kept.events] == [
        ("job.started", "r7"),
        ("in the job", "r7"),
        ("job.ended", "r7"),
    ]
    assert kept.events[1][2] == {"run_seen": run.id}
    assert kept.events[2][2] == {"kind": "evaluation", "how": "failed"}


def test_a_training_process_is_logged_from_the_queue_to_its_end(
    kept: Kept, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qlora_demo.launcher.train_command", lambda run, processes: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    vars(services.checks)["_preflight"] = lambda config, halt: iter([Step(Progress("1 row"), {"fatal": ""})])
    (run,) = services.checks.submit([TrainConfig()], 1)
    until(lambda: kept.events)
    Dispatcher(services).look()
    until(lambda: len(kept.events) > 2)
    told = [(event, facts["run"]) for event, _, facts in kept.events]
    assert told == [("run.queued", run.id), ("run.started", run.id), ("run.ended", run.id)]
    assert (kept.events[2][2]["state"], kept.events[2][2]["exit_code"]) == ("failed", 3)
