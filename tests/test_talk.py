"""One visitor's conversations: what a prompt adds, what an answer settles, what Retry takes back."""

from __future__ import annotations

import pytest

from qlora_demo.errors import ConfigError
from qlora_demo.records import Answer
from qlora_demo.ui.talk import Stops, Talk, conversation, messages, settle, take_back, with_prompt

BOTH = ["base", "adapter"]


def answered(talk: Talk, text: str) -> Talk:
    """The talk after every asked column said `text`."""
    talk.answers |= {name: Answer(name, text, finish="stop") for name in talk.asked}
    settle(talk)
    return talk


def texts(talk: Talk, name: str) -> list[str]:
    return [turn["content"] for turn in messages(talk, name)]


def test_a_second_prompt_follows_the_first_answer() -> None:
    talk = answered(with_prompt(Talk(), "one", "run", BOTH, "be brief"), "first")
    talk = with_prompt(talk, "two", "run", BOTH, "be brief")
    assert [turn["content"] for turn in conversation(talk, "base")] == ["be brief", "one", "first", "two"]


def test_a_column_that_is_not_asked_keeps_its_conversation() -> None:
    talk = answered(with_prompt(Talk(), "one", "run", BOTH, ""), "first")
    talk = answered(with_prompt(talk, "two", "run", ["base"], ""), "second")
    assert texts(talk, "adapter") == ["one", "first"]
    assert texts(talk, "base") == ["one", "first", "two", "second"]


@pytest.mark.parametrize(("run", "system"), [("other", ""), ("run", "other")])
def test_another_run_or_system_prompt_begins_anew(run: str, system: str) -> None:
    talk = answered(with_prompt(Talk(), "one", "run", BOTH, ""), "first")
    assert texts(with_prompt(talk, "two", run, BOTH, system), "base") == ["two"]


def test_a_failed_answer_takes_its_prompt_back() -> None:
    talk = with_prompt(Talk(), "one", "run", BOTH, "")
    talk.answers = {"base": Answer("base", error="no room"), "adapter": Answer("adapter", "fine", finish="stop")}
    settle(talk)
    assert (texts(talk, "base"), texts(talk, "adapter")) == ([], ["one", "fine"])


def test_retry_takes_the_last_prompt_back_once() -> None:
    talk = answered(with_prompt(Talk(), "one", "run", BOTH, ""), "first")
    assert take_back(talk) == "one"
    assert texts(talk, "base") == []
    with pytest.raises(ConfigError, match="prompt: there is nothing to retry"):
        take_back(Talk())


@pytest.mark.parametrize(("text", "names"), [("  ", BOTH), ("one", [])])
def test_nothing_to_ask_or_nobody_is_refused(text: str, names: list[str]) -> None:
    with pytest.raises(ConfigError):
        with_prompt(Talk(), text, "run", names, "")


def test_a_visitor_has_one_answer_at_a_time_and_can_stop_it() -> None:
    stops = Stops()
    flag = stops.new("me")
    stops.set("somebody else")
    assert not flag.is_set()
    with pytest.raises(ConfigError, match="still growing"):
        stops.new("me")
    stops.set("me")
    assert flag.is_set()
    stops.done("me")
    assert not stops.new("me").is_set()
