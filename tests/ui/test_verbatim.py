"""What a model said is shown as it said it: no HTML, no formula, every blank."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from qlora_demo.services import Services
from qlora_demo.ui.chat import verbatim
from qlora_demo.ui.page import build_page
from qlora_demo.ui.talk import from_html
from qlora_demo.upkeep.status import AppStatus
from tests.calls import quietly


def test_no_formula_is_made_of_what_is_said(services: Services) -> None:
    page = quietly(lambda: build_page(services, AppStatus()))
    chats = [part for part in page.blocks.values() if isinstance(part, gr.Chatbot)]
    assert len(chats) == 4 and all(chat.latex_delimiters == [] for chat in chats)


@pytest.mark.parametrize("text", ["a\tb", "    x = 1\n  y = 2", "\n\nlate", "  ", "", "a < b && c<3 & d; &", "\x07"])
def test_an_answer_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == [text]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<img src=x>", "&lt;img src=x>"),
        ("</p><!-- <?x", "&lt;/p>&lt;!-- &lt;?x"),
        ("vector<int> & &lt; &#60; &amp;lt;", "vector&lt;int> & &amp;lt; &amp;#60; &amp;amp;lt;"),
    ],
)
def test_what_a_chatbot_would_take_for_html_is_shown_as_words_and_read_back(text: str, html: str) -> None:
    assert shown(text) == [html]
    assert from_html(html) == text


def shown(text: str) -> list[str]:
    """What the page's chatbot is given."""
    chatbot: Any = gr.Chatbot()
    drawn = chatbot.postprocess(verbatim([{"role": "assistant", "content": text}])).model_dump()
    return [part["text"] for message in drawn for part in message["content"]]
