"""Sentences say what the figures say, and no more."""

from __future__ import annotations

from typing import Any

from qlora_demo.results.verdicts import fidelity_sentence, standings, told_apart


def merge(kl: float, exact: float = 0.9, identical: float = 0.9) -> dict[str, Any]:
    return {"kl_mean": kl, "exact_match": exact, "identical_answers": identical, "rows": 25}


def test_the_nearer_merge_is_to_be_shipped_and_why() -> None:
    sentence = fidelity_sentence(
        {"merged:original": merge(0.08, 0.8, 0.6), "merged:dequantized": merge(0.0003, 0.9, 1.0)}
    )
    assert sentence == (
        "Ship the merge onto the dequantized base: it is closer to what was trained (mean KL 0.0003 against 0.08 nats "
        "per token, 100% against 60% identical greedy answers on 25 held-out rows)."
    )


def test_the_other_one_scoring_higher_is_not_hidden() -> None:
    sentence = fidelity_sentence({"merged:original": merge(0.08, 0.96), "merged:dequantized": merge(0.0003, 0.9)})
    assert "Ship the merge onto the dequantized base" in sentence
    assert "The merge onto the original base scores higher here, 96% against 90%" in sentence


def test_merges_that_are_as_near_are_not_told_apart_by_it() -> None:
    sentence = fidelity_sentence({"merged:original": merge(0.0003, 0.95), "merged:dequantized": merge(0.00025, 0.9)})
    assert sentence.startswith("Both merges behave alike")
    assert sentence.endswith("ship the one onto the original base.")


def test_nothing_is_said_before_both_are_measured() -> None:
    assert fidelity_sentence({}) == ""
    assert fidelity_sentence({"merged:original": merge(0.1)}) == ""


def test_the_4_bit_merges_are_judged_apart() -> None:
    both = {"merged:original": merge(0.08), "merged:dequantized": merge(0.0003)}
    again = {"merged-4bit:original": merge(0.18), "merged-4bit:dequantized": merge(2.17)}
    assert "quantize the merge onto the original base (mean KL 0.18 against 2.2" in fidelity_sentence(both | again)


def row(**losses: float) -> dict[str, Any]:
    return {"answers": {name: {"loss": loss} for name, loss in losses.items()}}


def test_best_worst_and_most_changed_rows() -> None:
    rows = [row(base=2.0, adapter=0.5), row(base=2.0, adapter=0.1), row(base=9.0, adapter=1.0), row(base=3.0)]
    assert standings(rows, "base", "adapter", 2) == {"best": [1, 0], "worst": [2, 0], "most changed": [2, 1]}


def test_where_there_is_one_base_the_sentence_says_how_near_its_merge_is() -> None:
    one = {"merged:original": merge(0.0004, identical=1.0), "merged-4bit:original": merge(0.19, identical=0.0)}
    assert fidelity_sentence(one, bases=1) == (
        "Ship the merge onto the original base: it is the one that the adapter was trained on (mean KL 0.0004 nats per "
        "token, 100% identical greedy answers on 25 held-out rows). Quantized to 4 bit: mean KL 0.19 nats per "
        "token, 0% identical greedy answers."
    )


def answered(**right: str) -> list[dict[str, Any]]:
    """Rows by what each column got right: a letter a row, y, n, or - where it did not answer."""
    rows = zip(*right.values(), strict=True)
    return [
        {"answers": {name: {"exact_match": got == "y"} for name, got in zip(right, row, strict=True) if got != "-"}}
        for row in rows
    ]


def test_a_column_is_better_or_worse_only_where_enough_rows_say_so() -> None:
    rows = {"test": answered(base="nnnnnnnn", adapter="yyyyyyyn", merged="yyyyyynn"), "hard": answered(base="yyyyyy")}
    assert told_apart({"rows": rows}) == [
        "By exact match on test: adapter is better than base, right on 7 of 8 rows against 0 (p = 0.016). "
        "merged is not told apart from adapter, right on 6 of 8 rows against 7 (p = 1)."
    ]
    worse = answered(base="yyyyyy", adapter="nnnnnn")
    assert told_apart({"rows": {"test": worse}})[0].startswith(
        "By exact match on test: adapter is worse than base, right on 0 of 6 rows"
    )
    assert told_apart(None) == []


def test_rows_that_only_one_of_two_answered_say_nothing_of_both() -> None:
    stopped = answered(base="nnnnnnnn", adapter="yyy-----")
    [told] = told_apart({"rows": {"test": stopped}})
    assert (
        told
        == "By exact match on test: adapter is not told apart from base, right on 3 of 3 rows against 0 (p = 0.25)."
    )


def test_where_no_answer_is_ever_right_the_score_tells_nothing() -> None:
    assert told_apart({"rows": {"test": answered(base="nnn", adapter="nnn")}}) == []
