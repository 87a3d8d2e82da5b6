"""What the Chat tab's buttons do, with an engine that says what it is told to: nothing that was said is lost."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import GenerationSettings, TrainConfig
from qlora_demo.engine import OnDemand
from qlora_demo.errors import ConfigError, DemoError, DeviceBusy
from qlora_demo.knobs import field_names
from qlora_demo.records import Progress, Step
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from qlora_demo.ui.chat import SLOTS, Chat
from qlora_demo.ui.controls import fill
from qlora_demo.ui.talk import Talk, messages
from qlora_demo.visitors.access import Visitor
from tests.calls import Client, numbers, opened
from tests.queueing import until
from tests.ui.parrot import Parrot

NAMES = ["base", "adapter"]
SAMPLING = field_names(GenerationSettings)
VISITOR: Any = SimpleNamespace(session_hash="visitor", request=None)


class Tab:
    """The tab as one visitor uses it; what is shown is what was drawn last."""

    def __init__(self, services: Services) -> None:
        self.engine = Parrot()
        made: Any = lambda: self.engine  # noqa: E731
        self.chat = Chat(replace(services, engine=OnDemand(made)), list(SAMPLING))
        self.run = services.runs.create(TrainConfig()).id
        self.talk, self.box, self.blind = Talk(), "", False
        self.names = NAMES

    def ask(self, text: str) -> None:
        self.box = text
        self.take(self.chat.ask(text, VISITOR, *self.choices()))

    def take(self, steps: Iterator[list[Any]]) -> None:
        for taken, back, talk, *_ in steps:
            self.box = "" if isinstance(taken, str) else back if isinstance(back, str) else self.box
            self.talk = self._kept(talk)

    def press(self, steps: Iterator[list[Any]]) -> None:
        for talk, *_ in steps:
            self.talk = self._kept(talk)

    def choices(self) -> list[Any]:
        settings = fill(GenerationSettings(), SAMPLING)
        return [self.run, self.names, "", self.blind, "in turn", self.talk, *settings]

    def choose(self, *names: str) -> None:
        """Another selection; what the page then shows is in ``heads`` and ``visible``."""
        self.names = list(names)
        talk, _, *heads = self.chat.choose(self.run, self.names, self.talk, VISITOR)
        self.heads, self.talk = heads[: len(SLOTS)], self._kept(talk)
        _, *columns = self.chat.place(self.run, self.names, self.talk, VISITOR)
        self.visible = sum(column.visible for column in columns)

    def said(self, name: str = "base") -> list[str]:
        return [turn["content"] for turn in messages(self.talk, name)]

    def _kept(self, talk: Any) -> Talk:
        return talk if isinstance(talk, Talk) else self.talk


@pytest.fixture
def tab(services: Services) -> Tab:
    made = Tab(services)
    made.ask("one")
    assert (made.said(), made.box) == (["one", "answer 1"], "")
    return made


def test_a_busy_device_gives_the_prompt_back_and_keeps_what_was_said(tab: Tab) -> None:
    tab.engine.busy = True
    with pytest.raises(DemoError, match="held by training"):
        tab.ask("two")
    assert (tab.said(), tab.box) == (["one", "answer 1"], "two")


@contextlib.contextmanager
def job(tab: Tab, kind: str, *, models: bool = True) -> Iterator[None]:
    """A job that is half done for as long as the block."""
    end, half = threading.Event(), threading.Event()

    def work(halt: Halt) -> Iterator[Step]:
        yield Step(Progress("row 5 of 10", 0.5))
        half.set()
        end.wait()

    tab.chat.services.jobs.start(kind, tab.run, work, models=models)
    half.wait()
    yield
    end.set()
    until(lambda: not tab.chat.services.jobs.going)


def test_while_a_job_has_the_models_a_prompt_is_given_back_with_how_far_it_is(tab: Tab) -> None:
    busy = rf"^device: evaluation of {tab.run} is at work, 50%; wait or stop it"
    with tab.chat.services.waiting.turn(Visitor("operator"), Halt()) as places, job(tab, "evaluation"):
        assert list(places) == []  # somebody is answered: it is told at once all the same
        with pytest.raises(DeviceBusy, match=busy):
            tab.ask("two")
        assert (tab.said(), tab.box, tab.engine.asked) == (["one", "answer 1"], "two", 1)
        for press in (lambda: tab.press(tab.chat.retry(VISITOR, *tab.choices())), lambda: tab.chat.release(tab.talk)):
            with pytest.raises(DeviceBusy, match=busy):
                press()
    tab.ask("two")
    assert tab.said() == ["one", "answer 1", "two", "answer 2"]


def test_what_was_not_taken_in_still_stands_in_its_box_and_is_not_given_back(tab: Tab) -> None:
    with job(tab, "evaluation"), pytest.raises(DeviceBusy):
        for told in tab.chat.ask("two", VISITOR, *tab.choices()):
            assert told[:2] == [gr.skip()] * 2


@pytest.mark.parametrize("drawn", [1, 2], ids=["waits", "loads"])
def test_a_job_that_begins_while_a_prompt_waits_or_loads_gives_it_back(tab: Tab, drawn: int) -> None:
    steps = tab.chat.ask("two", VISITOR, *tab.choices())
    for _ in range(drawn):
        next(steps)
    with job(tab, "fidelity"), pytest.raises(DeviceBusy, match=r"fidelity of .* is at work"):
        tab.take(steps)
    assert (tab.said(), tab.box) == (["one", "answer 1"], "two")


def test_a_job_without_models_is_in_nobody_s_way(tab: Tab) -> None:
    with job(tab, "push", models=False):
        tab.ask("two")
    assert tab.said() == ["one", "answer 1", "two", "answer 2"]


def test_loading_that_is_stopped_gives_the_prompt_back(tab: Tab) -> None:
    tab.engine.stopped = True
    tab.ask("two")
    assert (tab.said(), tab.box) == (["one", "answer 1"], "two")


def test_a_prompt_that_no_column_could_answer_is_given_back_beside_the_reason(tab: Tab) -> None:
    tab.engine.error = "prompt: 40053 tokens exceed the model's context of 8192"
    tab.ask("two, at length")
    assert (tab.said(), tab.box) == (["one", "answer 1"], "two, at length")
    assert {answer.error for answer in tab.talk.answers.values()} == {tab.engine.error}


@pytest.mark.parametrize("trouble", ["busy", "stopped", "error"])
def test_an_answer_that_cannot_be_replaced_stands(tab: Tab, trouble: str) -> None:
    tab.ask("two")
    said, answers = ["one", "answer 1", "two", "answer 2"], tab.talk.answers
    setattr(tab.engine, trouble, "prompt: it is too long")
    buttons: tuple[Callable[[], Iterator[list[Any]]], ...] = (
        lambda: tab.chat.retry(VISITOR, *tab.choices()),
        lambda: tab.chat.again(1, VISITOR, *tab.choices()),
        lambda: tab.chat.edit(0, 0, "other words", VISITOR, *tab.choices()),
        lambda: tab.chat.edit(0, 0, "  ", VISITOR, *tab.choices()),
    )
    for button in buttons:
        with contextlib.suppress(DemoError):
            tab.press(button())
        assert (tab.said(), tab.said("adapter"), tab.talk.answers) == (said, said, answers)


def test_a_column_that_alone_cannot_answer_anew_keeps_what_it_said(tab: Tab) -> None:
    tab.ask("two")
    tab.engine.failing, tab.engine.error = "adapter", "device: out of memory"
    tab.press(tab.chat.edit(0, 0, "other words", VISITOR, *tab.choices()))
    assert tab.said() == ["other words", "answer 3"]
    assert tab.said("adapter") == ["one", "answer 1", "two", "answer 2"]
    assert tab.talk.answers["adapter"].error


def test_each_column_can_be_asked_again_in_any_order(tab: Tab) -> None:
    for place, name in ((1, "adapter"), (0, "base"), (1, "adapter")):
        tab.press(tab.chat.again(place, VISITOR, *tab.choices()))
        assert tab.said(name) == ["one", f"answer {tab.engine.asked}"]
    assert tab.engine.asked == 4


@pytest.mark.parametrize("drawn", [1, 2, 3])
def test_what_is_cleared_while_it_is_answered_is_not_shown_again(tab: Tab, drawn: int) -> None:
    tab.ask("one")
    steps = tab.chat.ask("two", VISITOR, *tab.choices())
    for _ in range(drawn):
        next(steps)
    tab.chat.forget(VISITOR)
    *_, (taken, back, talk, *_) = steps
    assert (taken, back, talk) == (gr.skip(), gr.skip(), Talk())
    tab.talk = Talk()
    tab.ask("three")
    assert tab.said() == ["three", f"answer {tab.engine.asked}"]


def test_what_waits_for_a_vote_is_not_taken_back(tab: Tab) -> None:
    tab.blind = True
    tab.ask("two")
    assert tab.talk.blind and tab.talk.comparison
    buttons = (
        tab.chat.retry(VISITOR, *tab.choices()),
        tab.chat.edit(0, 0, "x", VISITOR, *tab.choices()),
        tab.chat.again(0, VISITOR, *tab.choices()),
    )
    for button in buttons:
        with pytest.raises(DemoError, match="wait for a vote"):
            tab.press(button)
        assert tab.said() == tab.said("adapter") == ["two", "answer 2"]


def test_a_prompt_is_taken_in_once_for_the_next_is_typed_while_an_answer_grows(tab: Tab) -> None:
    first, *later = [told for *told, _ in (step[:3] for step in tab.chat.ask("two", VISITOR, *tab.choices()))]
    assert first == ["two", gr.skip()] and len(later) > 3
    assert all(told == [gr.skip()] * 2 for told in later)


@pytest.mark.parametrize("then", ["ask", "retry", "again"])
@pytest.mark.parametrize("answers", [True, False])
def test_what_is_asked_while_an_answer_is_being_stopped_begins_where_that_ends(
    tab: Tab, then: str, answers: bool
) -> None:
    """The page shows what is in ``tab.talk`` when the second button is pressed."""
    second = threading.Thread(target=lambda: press(*tab.choices()))

    def press(*choices: Any) -> None:
        asked = {"ask": lambda: tab.chat.ask("three", VISITOR, *choices)}
        asked |= {"retry": lambda: tab.chat.retry(VISITOR, *choices)}
        asked |= {"again": lambda: tab.chat.again(1, VISITOR, *choices)}
        list(asked[then]())

    def stop() -> None:
        tab.engine.meanwhile = lambda: None
        tab.engine.stopped = False
        tab.chat.halt(VISITOR)
        second.start()
        second.join(0.3)

    if answers:
        tab.engine.meanwhile = stop
        tab.ask("two")
        kept = ["one", "answer 1", "two", "answer 2"]
    else:
        steps = tab.chat.again(1, VISITOR, *tab.choices())
        tab.talk = next(steps)[0]
        stop()
        tab.press(steps)
        kept = ["one", "answer 1"]
    second.join()
    assert tab.engine.heard[-1] == {"ask": [*kept, "three"]}.get(then, kept[:-1])


def report_of(tab: Tab, what: str = "text") -> list[dict[str, str]]:
    """The answers of each conversation that was kept."""
    found = json.loads((tab.chat.services.runs.path(tab.run) / "results/conversations.json").read_text("utf-8"))
    return [{name: one[what] for name, one in kept["answers"].items()} for kept in found["conversations"]]


def test_a_report_keeps_whole_answers_to_the_prompt_and_no_others(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gr, "Info", lambda text: None)

    def keep() -> None:
        with pytest.raises(ConfigError, match="report: an answer still grows; wait for it or press Stop"):
            tab.chat.keep(tab.talk)

    tab.engine.meanwhile = keep
    tab.names = ["base", "merged"]
    tab.ask("two")
    tab.press(tab.chat.again(1, VISITOR, *tab.choices()))
    tab.chat.keep(tab.talk)
    assert report_of(tab) == [{"base": "answer 2", "merged": "answer 3"}]
    said = {"base": "user: one\n\nassistant: answer 1", "merged": ""}
    assert report_of(tab, "earlier") == [said], "merged was asked nothing before"


@pytest.mark.parametrize("other", [False, True], ids=["of the run", "of another run"])
def test_what_an_adapter_said_before_its_run_went_on_is_not_told_of_the_one_that_is_there(
    tab: Tab, other: bool
) -> None:
    runs = tab.chat.services.runs
    run = runs.create(TrainConfig()) if other else runs.get(tab.run)
    tab.names = ["base", f" adapter@{run.id} "] if other else tab.names
    tab.ask("one")
    run.adapter.mkdir(exist_ok=True)
    (run.adapter / "adapter_model.safetensors").touch()
    write_state(run.path, replace(run.state, earlier_seconds=1.0))
    with pytest.raises(ConfigError, match="report: answers are of an adapter before its run was resumed"):
        tab.chat.keep(tab.talk)
    with pytest.raises(ConfigError, match="prompt: answers are of an adapter before its run was resumed"):
        tab.press(tab.chat.again(1, VISITOR, *tab.choices()))
    tab.ask("two")
    assert tab.engine.heard[-1] == ["two"]


def test_a_page_that_was_forgotten_still_gives_its_examples(tab: Tab) -> None:
    rows = {"messages": [{"role": "user", "content": "an example"}, {"role": "assistant", "content": "x"}]}
    folder = tab.chat.services.runs.path(tab.run) / "heldout"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps(rows) + "\n", "utf-8")
    page = opened(tab.chat.services)
    [example] = numbers(page, "example")
    with Client(str(page.local_url)) as client:
        assert client.call(example, [0, tab.run])["output"]["data"] == ["an example"]
        for wrong in (1, -1, None, "x"):
            [told] = client.call(example, [wrong, tab.run])["told"]
            assert f"example: {wrong!r} is none of 1" in told
    page.close()


def test_the_base_model_alone_is_offered_as_such_and_has_no_report(services: Services) -> None:
    chat = Chat(services, list(SAMPLING))
    names, system, examples, *_ = chat.choose_run(SMOLLM2.name, ["base", "adapter"], VISITOR)
    assert (names["choices"], names["value"]) == ([("Base", "base")], ["base"])
    assert "JSON" in system and examples._constructor_args[0]["samples"]
    with pytest.raises(ConfigError, match="not trained yet; train it, then ask"):
        chat.keep(Talk(run=SMOLLM2.name))
