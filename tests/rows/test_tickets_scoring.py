"""The bundled task: rows that never change, splits that share nothing they must not, and the score of an answer."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import pytest

from qlora_demo.results.scoring import Score, score, summarize
from qlora_demo.rows.tickets import HELD_OUT_ROWS, SYSTEM_PROMPT, Row, Split, rows

SPLITS: tuple[Split, ...] = ("train", "test", "hard")
POOLS: dict[str, Any] = json.loads(files("qlora_demo.rows").joinpath("tickets.json").read_text("utf-8"))
COUNTS: dict[Split, int] = {"train": 2000, "test": HELD_OUT_ROWS, "hard": 2000}
FIRST_ROWS = {
    "train": {"category": "hardware", "product": "Mistral Key", "severity": "high"},
    "test": {"category": "hardware", "product": "Helio One", "severity": "low"},
    "hard": {"category": "hardware", "product": "Corvid Cast", "severity": "low"},
}
FIELDS = ["category", "product", "severity"]
REFERENCE = '{"category": "billing", "product": "Tarn Hub", "severity": "low"}'


def ticket(row: Row) -> str:
    """What the customer wrote."""
    return row["messages"][1]["content"]


def reference(row: Row) -> dict[str, str]:
    """The answer's parsed JSON."""
    parsed: dict[str, str] = json.loads(row["messages"][2]["content"])
    return parsed


def phrases(pool: dict[str, Any], key: str) -> set[str]:
    """All wordings of one kind; symptoms and impacts of every category and severity together."""
    kinds = pool[key].values() if isinstance(pool[key], dict) else [pool[key]]
    return {phrase.casefold() for kind in kinds for phrase in kind}


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_always_the_same_ones_however_many_are_asked_for(split: Split) -> None:
    assert rows(split, 20) == rows(split, 20)
    assert rows(split, 40)[:20] == rows(split, 20)
    assert len(rows(split, 40)) == 40
    assert rows(split, 0) == []


def test_the_first_row_of_each_split_is_the_one_it_has_always_been() -> None:
    first = {split: reference(rows(split, 1)[0]) for split in SPLITS}
    assert first == FIRST_ROWS


def test_no_ticket_stands_in_two_splits_or_twice_in_one() -> None:
    tickets = {split: [ticket(row) for row in rows(split, count)] for split, count in COUNTS.items()}
    together = [text for split in tickets.values() for text in split]
    assert len(set(together)) == len(together) == sum(COUNTS.values())


@pytest.mark.parametrize("key", ["first", "second", "symptom", "impact", "opening", "aside", "closing"])
def test_nothing_of_the_hard_pool_is_in_the_training_pool(key: str) -> None:
    hard = phrases(POOLS["hard"], key)
    assert hard
    assert hard & phrases(POOLS["train"], key) == set()


def test_the_hard_pool_has_the_categories_and_severities_of_the_training_pool() -> None:
    for key in ("symptom", "impact"):
        assert POOLS["hard"][key].keys() == POOLS["train"][key].keys()


def test_no_training_row_holds_a_word_of_a_hard_product() -> None:
    hard = set(POOLS["hard"]["first"] + POOLS["hard"]["second"])
    for row in rows("train", 2000) + rows("test", HELD_OUT_ROWS):
        assert not hard & set(re.findall(r"\w+", ticket(row)))
        assert not hard & set(reference(row)["product"].split())


@pytest.mark.parametrize("split", SPLITS)
def test_each_row_is_a_conversation_whose_answer_can_be_read_off_the_ticket(split: Split) -> None:
    pool = POOLS["hard" if split == "hard" else "train"]
    for row in rows(split, HELD_OUT_ROWS):
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == SYSTEM_PROMPT
        fields = reference(row)
        assert list(fields) == FIELDS
        assert fields["product"] in ticket(row)
        assert "{" not in ticket(row)
        assert any(s.format(product=fields["product"]) in ticket(row) for s in pool["symptom"][fields["category"]])
        assert any(impact in ticket(row) for impact in pool["impact"][fields["severity"]])


def test_more_test_rows_than_are_held_out_are_refused() -> None:
    assert len(rows("test", HELD_OUT_ROWS)) == HELD_OUT_ROWS == 200
    with pytest.raises(ValueError, match=r"^count: the test split has 200 rows, asked for 201"):
        rows("test", HELD_OUT_ROWS + 1)


@pytest.mark.parametrize("answer", [REFERENCE, f"\n {REFERENCE} ", json.dumps(json.loads(REFERENCE), indent=2)])
def test_an_answer_with_the_same_values_is_exact(answer: str) -> None:
    assert score(answer, REFERENCE) == Score(True, True, dict.fromkeys(FIELDS, True))


def test_the_order_of_the_fields_does_not_matter() -> None:
    assert score(json.dumps(dict(reversed(json.loads(REFERENCE).items()))), REFERENCE).exact_match


def test_a_wrong_field_is_told_from_the_right_ones() -> None:
    scored = score(REFERENCE.replace("low", "high"), REFERENCE)
    assert scored == Score(False, True, {"category": True, "product": True, "severity": False})


def test_a_missing_field_is_wrong_and_the_others_count() -> None:
    scored = score('{"category": "billing"}', REFERENCE)
    assert scored == Score(False, True, {"category": True, "product": False, "severity": False})


def test_a_field_too_many_is_not_exact() -> None:
    scored = score(REFERENCE.replace("}", ', "x": 1}'), REFERENCE)
    assert scored == Score(False, True, dict.fromkeys(FIELDS, True))


@pytest.mark.parametrize("answer", ["", "{", f"{REFERENCE} and more", "Sure: {}", "{'a': 1}", "\0", "9" * 5000])
def test_an_answer_that_is_not_json_scores_nothing(answer: str) -> None:
    assert score(answer, REFERENCE) == Score(False, False, dict.fromkeys(FIELDS, False))


@pytest.mark.parametrize("answer", ["[]", "null", "7", '"category"', '["category", "product", "severity"]'])
def test_json_that_is_no_object_is_valid_and_wrong(answer: str) -> None:
    assert score(answer, REFERENCE) == Score(False, True, dict.fromkeys(FIELDS, False))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"category":' * 200_000, "[" * 400 + "]" * 400])
def test_deep_nesting_is_wrong_and_no_crash(text: str) -> None:
    assert not score(text, REFERENCE).exact_match
    assert score(text, text).exact_match


@pytest.mark.parametrize("reference", ["Paris", "", "[1]", "7", "{half"])
def test_a_reference_that_is_no_json_object_is_compared_as_text(reference: str) -> None:
    right, wrong = score(f" {reference}\n", reference), score(reference + "x", reference)
    assert (right.exact_match, wrong.exact_match) == (True, False)
    assert right.valid_json is None and right.fields == {}


@pytest.mark.parametrize(
    ("answer", "share"),
    [("the cat sat", 1.0), ("the CAT, sat!", 1.0), ("the cat", 0.8), ("sat the cat", 2 / 3), ("", 0.0), ("dog", 0.0)],
)
def test_free_text_has_the_words_in_common_in_their_order(answer: str, share: float) -> None:
    assert score(answer, "the cat sat").rouge_l == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "reference", "share"),
    [
        ("кот сидит", "кот спит", 0.5),
        ("किताब", "कुतूब", 0.0),
        ("一二三四五", "一二三四", 8 / 9),
        (":)", ":)", 1.0),
        ("", " ", 1.0),
        (":)", ":(", 0.0),
    ],
)
def test_words_of_any_script_count(answer: str, reference: str, share: float) -> None:
    assert score(answer, reference).rouge_l == pytest.approx(share)


def test_shares_are_over_the_rows_they_apply_to() -> None:
    right, wrong, invalid = REFERENCE, REFERENCE.replace("low", "high"), "no"
    scores = [score(answer, REFERENCE) for answer in (right, right, wrong, invalid)]
    assert summarize(scores) == {
        "rows": 4,
        "exact_match": 0.5,
        "valid_json": 0.75,
        "fields": {"category": 0.75, "product": 0.75, "severity": 0.5},
    }


def test_a_field_s_share_is_of_the_rows_that_have_it() -> None:
    references = ['{"a": 1}', '{"a": 2}', '{"a": 3, "due": "today"}']
    found = summarize([score(one, one) for one in references] + [score('{"a": 1}', '{"a": 1, "due": "today"}')])
    assert found["fields"] == {"a": 1.0, "due": 0.5}


def test_a_task_of_texts_has_no_share_of_valid_json() -> None:
    assert summarize([score("a", "a"), score("b", "c")]) == {"rows": 2, "exact_match": 0.5, "rouge_l": 0.5}


@pytest.mark.parametrize("reasoning", ["<think>\n\n</think>\n\n", "<think>\nLow, I think.\n</think>\n\n"])
def test_what_a_model_reasons_first_is_no_part_of_its_answer(reasoning: str) -> None:
    assert score(reasoning + REFERENCE, REFERENCE) == score(REFERENCE, REFERENCE)
    assert score(f"{reasoning}low", "low") == score("low", "low")
    assert not score(f"{REFERENCE}{reasoning}", REFERENCE).exact_match
    assert score("a</think>b", "a</think>b").exact_match
