"""One visitor's conversations: what a prompt adds, what an answer settles, what Retry takes back."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from qlora_demo.columns import parse_all
from qlora_demo.errors import ConfigError
from qlora_demo.records import Answer
from qlora_demo.ui.talk import (
    Stops,
    Talk,
    ask_again,
    conversation,
    copied,
    cut_before,
    messages,
    settle,
    take_back,
    with_prompt,
)

BOTH = ["base", "adapter"]


def chosen(run: str, names: Sequence[str], system: str, *, blind: bool = False) -> Talk:
    """What is chosen on the page now."""
    return Talk(run, system, blind=blind, columns=parse_all(names, run))


def answered(talk: Talk, text: str, failing: Sequence[str] = ()) -> Talk:
    """The talk after every asked column said `text`, or failed."""
    talk.answers |= {name: Answer(name, text, finish="stop") for name in talk.asked}
    talk.answers |= {name: Answer(name, error="no room") for name in failing}
    settle(talk)
    return talk


def asked(*prompts: tuple[str, Sequence[str]], failing: Sequence[str] = ()) -> Talk:
    """A talk of these prompts, each to its columns; the first fails in some."""
    talk = Talk()
    for at, (text, names) in enumerate(prompts):
        talk = answered(with_prompt(talk, text, chosen("run", names, "")), text.upper(), () if at else failing)
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
    assert take_back(talk, BOTH) == "one"
    assert texts(talk, "base") == []
    with pytest.raises(ConfigError, match="prompt: there is nothing to retry"):
        take_back(Talk(), BOTH)


def test_retry_takes_nothing_back_that_only_reads_the_same() -> None:
    talk = asked(("hi", BOTH))
    talk = answered(with_prompt(talk, "hi", chosen("run", BOTH, "")), "HI", ["adapter"])
    take_back(talk, BOTH)
    assert texts(talk, "base") == texts(talk, "adapter") == ["hi", "HI"]


def test_one_column_alone_is_asked_again() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    ask_again(talk, 1)
    assert (texts(talk, "base"), texts(talk, "adapter")) == (["one", "first"], ["one"])
    assert (talk.asked, talk.ended) == (("adapter",), False)
    assert answered(talk, "again").ended
    assert (texts(talk, "base"), texts(talk, "adapter")) == (["one", "first"], ["one", "again"])


def test_answers_are_those_to_the_last_prompt() -> None:
    """What is kept in the report, and compared in the bars, stands under it."""
    talk = asked(("one", BOTH), ("two", ["base", "merged"]))
    assert {name: answer.text for name, answer in talk.answers.items()} == {"base": "TWO", "merged": "TWO"}


def test_an_edited_prompt_is_forgotten_with_what_followed_in_every_column() -> None:
    talk = answered(with_prompt(Talk(), "one", chosen("run", BOTH, "")), "first")
    talk = answered(with_prompt(talk, "two", chosen("run", BOTH, "")), "second")
    cut_before(talk, place=1, message=2)
    assert texts(talk, "base") == texts(talk, "adapter") == ["one", "first"]
    cut_before(talk, place=0, message=0)
    assert texts(talk, "base") == []


@pytest.mark.parametrize(
    ("names", "failing", "place", "message", "left"),
    [
        (["base"], [], 0, 2, (["one", "ONE"], [])),
        (["base"], [], 1, 0, (["one", "ONE"], [])),
        (BOTH, ["adapter"], 0, 4, (["one", "ONE", "two", "TWO"], ["two", "TWO"])),
        (BOTH, ["adapter"], 1, 1, (["one", "ONE"], [])),
    ],
)
def test_an_edited_prompt_is_found_in_columns_with_another_history(
    names: Sequence[str], failing: Sequence[str], place: int, message: int, left: tuple[list[str], list[str]]
) -> None:
    talk = asked(("one", names), ("two", BOTH), ("three", BOTH), failing=failing)
    cut_before(talk, place, message)
    assert (texts(talk, "base"), texts(talk, "adapter")) == left
    with pytest.raises(ConfigError, match="edit: this column has no message 9; edit a prompt that is shown"):
        cut_before(talk, place, 9)


def test_a_blind_prompt_begins_anew_so_that_nothing_tells_whose_column_it_is() -> None:
    talk = asked(("one", BOTH))
    hidden = with_prompt(copied(talk), "two", chosen("run", BOTH, "", blind=True))
    assert texts(hidden, "base") == texts(hidden, "adapter") == ["two"]
    assert texts(with_prompt(talk, "two", chosen("run", BOTH, "")), "base") == ["one", "ONE", "two"]


def test_blind_columns_are_shuffled_for_each_prompt_and_wait_for_a_vote() -> None:
    names = ["base", "adapter", "merged", "merged-4bit"]
    orders = set()
    for _ in range(60):
        talk = with_prompt(Talk(), "one", chosen("run", names, "", blind=True))
        orders.add(tuple(column.name for column in talk.columns))
        assert sorted(orders.copy().pop()) == sorted(names)
    assert len(orders) > 5
    talk = answered(talk, "first")
    for more in (lambda: with_prompt(talk, "two", chosen("run", names, "")), lambda: ask_again(talk, 0)):
        with pytest.raises(ConfigError, match="vote: the last answers wait for a vote"):
            more()


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
