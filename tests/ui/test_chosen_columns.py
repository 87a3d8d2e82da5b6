"""The Chat tab shows the columns that are chosen."""

from __future__ import annotations

from qlora_demo.services import Services
from qlora_demo.ui.talk import Talk
from tests.ui.test_chat import NAMES, VISITOR, Tab


def test_what_is_shown_is_what_is_chosen_and_nothing_that_was_said_is_lost(services: Services) -> None:
    tab = Tab(services)
    tab.ask("one")
    tab.names = [*NAMES, "merged"]
    tab.ask("two")
    whole = tab.talk
    tab.choose("adapter", "merged")
    assert [name in head for name, head in zip(("adapter", "Merged"), tab.heads, strict=False)] == [True] * 2
    assert (tab.visible, [column.name for column in tab.talk.columns]) == (2, ["adapter", "merged"])
    assert list(tab.talk.shown) == ["adapter", "merged"], "no bars, and no report, of what is not shown"
    tab.press(tab.chat.retry(VISITOR, *tab.choices()))
    tab.press(tab.chat.again(1, VISITOR, *tab.choices()))
    assert tab.said("adapter")[-1:] + tab.said("merged") == ["answer 3", "two", "answer 4"]
    tab.choose("base", "adapter", "merged", "merged-4bit")
    assert (tab.visible, tab.said(), tab.said("merged-4bit")) == (4, ["one", "answer 1", "two", "answer 2"], [])
    tab.press(tab.chat.retry(VISITOR, *tab.choices()))
    assert tab.said() == ["one", "answer 1", "two", "answer 5"], "the prompt is the one that was retried"
    tab.choose("x")
    assert (tab.visible, len(tab.talk.columns)) == (4, 4), "until it is known what that is"
    tab.talk = whole
    tab.choose("adapter")
    tab.choose(*NAMES, "merged")
    assert tab.talk == whole


def test_a_comparison_stays_until_its_vote_and_an_answer_while_it_grows(services: Services) -> None:
    tab = Tab(services)
    tab.engine.meanwhile = lambda: tab.choose("base")
    tab.ask("one")
    assert (tab.visible, len(tab.talk.columns)) == (2, 2)
    tab.engine.meanwhile = lambda: None
    tab.blind, tab.names = True, NAMES
    tab.ask("two")
    tab.choose("base")
    assert tab.visible == 2
    tab.talk = tab.chat.vote("0", tab.talk)[0]
    tab.choose(*reversed([column.name for column in tab.talk.columns]))
    assert tab.visible == 2 and tab.talk.columns, "A stays on the left of B"
    tab.choose("base")
    assert (tab.visible, [column.name for column in tab.talk.columns]) == (1, ["base"])
    tab.talk = Talk()
    tab.choose(*NAMES, "merged")
    assert (tab.visible, tab.talk) == (3, Talk())
