"""One visitor's conversations: what a prompt adds, what an answer settles, what Retry takes back."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from qlora_demo.columns import parse_all
from qlora_demo.errors import ConfigError
from qlora_demo.records import Answer
from qlora_demo.ui.talk import Stops, Talk, conversation, cut_before, messages, settle, take_back, with_prompt

BOTH = ["base", "adapter"]


def chosen(run: str, names: Sequence[str], system: str, *, blind: bool = False) -> Talk:
    """What is chosen on the page now."""
    return Talk(run, system, blind=blind, columns=parse_all(names, run))


def answered(talk: Talk, text: str) -> Talk:
    """The talk after every asked column said `text`."""
    talk.answers |= {name: Answer(name, text, finish="stop") for name in talk.asked}
    settle(talk)
    return talk


def texts(talk: Talk, name: str) -> list[str]:
    return [turn["content"] for turn in messages(talk, name)]


def test_a_second_prompt_follows_the_first_answer() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "be brief")), "first")
    talk = with_prompt(talk, "two", chosen("run", BOTH, "be brief"))
    assert [turn["content"] for turn in conversation(talk, "base")] == ["be brief", "one", "first", "two"]


def test_a_column_that_is_not_asked_keeps_its_conversation() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    talk = answered(with_prompt(talk, "two", chosen("run", ["base"], "")), "second")
    assert texts(talk, "adapter") == ["one", "first"]
    assert texts(talk, "base") == ["one", "first", "two", "second"]


@pytest.mark.parametrize(("run", "system"), [("other", ""), ("run", "other")])
def test_another_run_or_system_prompt_begins_anew(run: str, system: str) -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    assert texts(with_prompt(talk, "two", chosen(run, BOTH, system)), "base") == ["two"]


def test_a_failed_answer_takes_its_prompt_back() -> None:
    talk = with_prompt(Talk(), "one", chosen("run", BOTH, ""))
    talk.answers = {"base": Answer("base", error="no room"), "adapter": Answer("adapter", "fine", finish="stop")}
    settle(talk)
    assert (texts(talk, "base"), texts(talk, "adapter")) == ([], ["one", "fine"])


def test_retry_takes_the_last_prompt_back_once() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    assert take_back(talk) == "one"
    assert texts(talk, "base") == []
    with pytest.raises(ConfigError, match="prompt: there is nothing to retry"):
        take_back(Talk())


def test_one_column_alone_is_asked_again() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    assert take_back(talk, ["adapter"]) == "one"
    assert (texts(talk, "base"), texts(talk, "adapter")) == (["one", "first"], [])


def test_an_edited_prompt_is_forgotten_with_what_followed_in_every_column() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    talk = answered(with_prompt(talk, "two", chosen("run", BOTH, "")), "second")
    cut_before(talk, place=1, message=2)
    assert texts(talk, "base") == texts(talk, "adapter") == ["one", "first"]
    cut_before(talk, place=0, message=0)
    assert texts(talk, "base") == []


def test_blind_columns_are_shuffled_for_each_prompt_and_wait_for_a_vote() -> None:
    names = ["base", "adapter", "merged", "merged-4bit"]
    orders = set()
    for _ in range(60):
        talk = with_prompt(Talk(), "one", chosen("run", names, "", blind=True))
        orders.add(tuple(column.name for column in talk.columns))
        assert sorted(orders.copy().pop()) == sorted(names)
    assert len(orders) > 5
    with pytest.raises(ConfigError, match="vote: the last answers wait for a vote"):
        with_prompt(talk, "two", chosen("run", names, ""))


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt: it is empty"):
        with_prompt(Talk(), "  ", chosen("run", BOTH, ""))


def test_one_column_is_stopped_without_the_others() -> None:
    stops = Stops()
    halt = stops.new("me")
    stops.set("me", "adapter")
    assert (halt.is_set("adapter"), halt.is_set("base"), halt.is_set()) == (True, False, False)


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


def test_asking_while_the_last_answer_is_being_stopped_waits_for_its_end() -> None:
    stops = Stops()
    stops.new("me")
    stops.set("me")
    threading.Timer(0.2, stops.done, ["me"]).start()
    assert not stops.new("me").is_set()
