"""Columns and answers as HTML: what is shown is what was measured, hidden is hidden, text is never markup."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import Literal, get_args

import pytest

from qlora_demo.catalog import SHAPES
from qlora_demo.columns import parse, parse_all
from qlora_demo.plan.placement import Device, Unit, Wanted, place
from qlora_demo.records import Answer, AnswerTiming, BaseForm, Proof, Resident
from qlora_demo.ui import render
from qlora_demo.ui import render_answers as show
from qlora_demo.ui.talk import Talk
from qlora_demo.units import GIB

HOSTILE = """"'><img src=x onerror='alert("&")'>"""
TALK = Talk("run", columns=parse_all(["base", "adapter"], "run"))
RESIDENT = Resident(parse("adapter", "run"), "Base + adapter", "nf4", "on", 2 * GIB, GIB, "base", "a note", 3.0, 0.5)
TIMING = AnswerTiming(9, 11, 0.25, 2.25, (0.1,) * 5 + (0.3,) * 5)
ANSWER = Answer("base", "text", (1, 2), TIMING, "stop", Proof("bf16", "none", "ab12"), GIB, GIB, 10 * GIB)
BLIND = replace(TALK, blind=True)


@pytest.mark.parametrize(
    "html",
    [
        show.slot_foot(Answer("base", error=HOSTILE), False),
        show.slot_foot(replace(ANSWER, proof=Proof("nf4", "on", HOSTILE)), False),
        show.slot_head(TALK, 0, None, HOSTILE),
        show.slot_head(TALK, 1, replace(RESIDENT, title=HOSTILE), ""),
        show.slot_head(TALK, 1, replace(RESIDENT, shares=HOSTILE), ""),
        show.slot_head(TALK, 1, replace(RESIDENT, note=HOSTILE), ""),
        show.slot_head(replace(TALK, columns=parse_all([f"adapter@{HOSTILE}"], "run")), 0, None, ""),
        show.latency({"x": replace(ANSWER, column=HOSTILE)}, False),
        show.difference(replace(ANSWER, text=HOSTILE, token_ids=(1,)), ANSWER),
        render.problem(HOSTILE),
    ],
)
def test_hostile_text_is_shown_and_is_no_markup(html: str) -> None:
    assert "<img" not in html
    assert escape("<") in html
    assert HOSTILE not in html


def test_the_head_names_precision_memory_what_it_shares_and_first_use_costs() -> None:
    html = show.slot_head(TALK, 1, RESIDENT, "")
    assert "<b>Base + adapter</b><small>nf4 · 2.0 GiB, shares the weights of base<br>a note" in html
    assert "loaded in 3.0 s, warmed up in 500 ms" in html
    assert "loading now" in show.slot_head(TALK, 1, None, "loading now")


def test_a_column_of_another_run_says_so() -> None:
    talk = replace(TALK, columns=parse_all(["adapter", "adapter@other"], "run"))
    assert "Base + adapter · other" in show.slot_head(talk, 1, None, "")
    other = replace(RESIDENT, column=parse("adapter@other", "run"))
    assert "Base + adapter · other" in show.slot_head(talk, 1, other, "")


def test_blind_shows_letters_and_no_figures() -> None:
    assert "<b>B</b>" in show.slot_head(BLIND, 1, RESIDENT, "")
    html = show.slot_head(BLIND, 1, RESIDENT, "") + show.slot_foot(ANSWER, True) + show.latency({"base": ANSWER}, True)
    for secret in ("adapter", "nf4", "GiB", "tokens/s", "ms", "base"):
        assert secret not in html


@pytest.mark.parametrize(
    ("finish", "words"),
    [
        ("stop", "ended by itself"),
        ("length", "cut off at the length limit"),
        ("stopped", "stopped by hand"),
        (None, "…"),
    ],
)
def test_the_foot_says_how_the_answer_ended(finish: Literal["stop", "length", "stopped"] | None, words: str) -> None:
    assert f"<dt>end</dt><dd>{words}</dd>" in show.slot_foot(Answer("base", finish=finish), False)


def test_the_foot_has_the_answer_s_own_figures() -> None:
    html = show.slot_foot(ANSWER, False)
    for words in ("250 ms", "5.0 tokens/s", "200 ms", "300 ms", "11 tokens", "2.2 s", "1.0 GiB", "50.0%"):
        assert f"<dd>{words}</dd>" in html
    assert "answered by: bf16 weights, adapter none, logits ab12" in html
    assert "decode: eager (no CUDA device)" in show.slot_foot(replace(ANSWER, decode="eager (no CUDA device)"), False)


def test_a_foot_that_has_not_begun_claims_no_speed() -> None:
    assert "tokens/s" not in show.slot_foot(Answer("base"), False)
    one = Answer("base", timing=AnswerTiming(9, 1, 0.25, 0.25), finish="stop")
    assert "tokens/s" not in show.slot_foot(one, False)
    assert "<dd>1 token</dd>" in show.slot_foot(one, False)
    assert show.slot_foot(None, False) == '<div class="foot"></div>'


def test_the_same_answer_is_called_the_same_and_a_different_one_names_its_token() -> None:
    assert "The same answer, token for token: 2 tokens" in show.difference(ANSWER, replace(ANSWER, column="merged"))
    other = replace(ANSWER, text="test", token_ids=(1, 3))
    assert "The first differing token is token 2." in show.difference(ANSWER, other)
    assert '<mark class="new">test</mark>' in show.difference(ANSWER, other)
    assert "The same text; the tokens differ from token 2 on" in show.difference(ANSWER, replace(other, text="text"))


@pytest.mark.parametrize("form", get_args(BaseForm))
def test_the_placement_of_a_run_on_any_base_is_shown(form: BaseForm) -> None:
    wanted = [Wanted(c, "m", SHAPES["qwen3-4b"], form, 1 << 20) for c in parse_all(["base", "adapter"], "run")]
    assert "adapter: " in show.placement(place(wanted, {}, Device("cuda", 16 * GIB, 40 * GIB)))


def test_the_placement_bar_has_a_part_for_everything_that_takes_room() -> None:
    wanted = [Wanted(c, "m", SHAPES["qwen3-4b"], "nf4", 1 << 20) for c in parse_all(["adapter", "merged"], "run")]
    held = {Unit("merged", "m", "old", "original"): 8 * GIB}
    html = show.placement(place(wanted, held, Device("cuda", 16 * GIB, 40 * GIB)))
    for part in (
        "merged model of old onto original 8.0 GiB",
        "adapter: 4-bit base",
        "merged: merged model of run",
        "room to work in",
    ):
        assert part in html
    assert 'class="says"' in html
    assert 'class="says bad"' in show.placement(place(wanted, {}, Device("cuda", GIB, GIB)))
