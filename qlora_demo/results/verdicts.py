"""What figures mean, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..units import counted
from .chance import LEVEL, p_value, sign_test

Merges = Mapping[str, Mapping[str, Any]]
_CLOSE = 1.5
"""A merge whose divergence is within this factor of the other's is not told apart by it."""
_METHOD = (
    "Rows are answered greedily in batches, which round otherwise than the chat's single answers: where two tokens are "
    "nearly as likely, the two may differ. Intervals: 95% Wilson score."
)
_TOLD_APART = (
    "p: exact two-sided sign test on the rows that both answered and only one got right, for each pair by itself; "
    f"below {LEVEL} they are told apart."
)


def fidelity_sentence(merges: Merges, bases: int = 2) -> str:
    """Which merge to ship, and why; ``merges`` by column name (``merged:original`` ...), as measured against the
    adapter model.  Empty until the 16-bit merges onto all of so many bases are measured."""
    sixteen = {name.partition(":")[2]: merges[name] for name in merges if name.startswith("merged:")}
    four = {name.partition(":")[2]: merges[name] for name in merges if name.startswith("merged-4bit:")}
    if len(sixteen) < bases:
        return ""
    which, again = (_which_16_bit, _which_4_bit) if bases > 1 else (_only_16_bit, _only_4_bit)
    return " ".join([which(sixteen), *([again(four)] if len(four) == bases else [])])


def told_apart(result: Mapping[str, Any] | None) -> list[str]:
    """By split, whether each column answers better than the one before it; nothing where neither is ever right."""
    told = []
    for split, rows in (result or {}).get("rows", {}).items():
        columns = list(rows[0]["answers"]) if rows else []
        pairs = [_compared(rows, *pair) for pair in pairwise(columns)]
        if any(pairs):
            told.append(f"By exact match on {split}: {' '.join(filter(None, pairs))}")
    return told


def method(told: Sequence[str]) -> str:
    """How an evaluation's answers were made, its intervals computed, and, where it says anything, `told_apart`."""
    return f"{_METHOD} {_TOLD_APART}" if told else _METHOD


def standings(rows: Sequence[Mapping[str, Any]], before: str, after: str, count: int = 3) -> dict[str, list[int]]:
    """Positions of the rows where `after` is best and worst, and that changed most against `before`, by the loss of
    the reference answer."""
    both = [at for at, row in enumerate(rows) if {before, after} <= set(row["answers"])]

    def loss(at: int, column: str) -> float:
        return float(rows[at]["answers"][column]["loss"])

    by_loss = sorted(both, key=lambda at: loss(at, after))
    by_change = sorted(both, key=lambda at: abs(loss(at, before) - loss(at, after)), reverse=True)
    return {"best": by_loss[:count], "worst": by_loss[::-1][:count], "most changed": by_change[:count]}


def _compared(rows: Sequence[Mapping[str, Any]], before: str, after: str) -> str:
    both = [row["answers"] for row in rows if {before, after} <= set(row["answers"])]
    right = [(bool(found[after]["exact_match"]), bool(found[before]["exact_match"])) for found in both]
    ours, theirs = map(sum, zip(*right, strict=True)) if right else (0, 0)
    if not ours + theirs:
        return ""
    won, lost = right.count((True, False)), right.count((False, True))
    chance = sign_test(won, lost)
    verdict = "is not told apart from" if chance >= LEVEL else "is better than" if won > lost else "is worse than"
    count = counted(len(right), "row")
    return f"{after} {verdict} {before}, right on {ours} of {count} against {theirs} ({p_value(chance)})."


def _which_16_bit(merges: Merges) -> str:
    near, far = _nearest_first(merges)
    ours, theirs = merges[near], merges[far]
    why = f"{_against(ours, theirs)} on {counted(ours['rows'], 'held-out row')}"
    if theirs["kl_mean"] <= _CLOSE * ours["kl_mean"]:
        better = max(merges, key=lambda onto: float(merges[onto]["exact_match"]))
        return f"Both merges behave alike ({why}); ship the one onto the {better} base."
    sentence = f"Ship the merge onto the {near} base: it is closer to what was trained ({why})."
    if theirs["exact_match"] <= ours["exact_match"]:
        return sentence
    return (
        f"{sentence} The merge onto the {far} base scores higher here, {theirs['exact_match']:.0%} against "
        f"{ours['exact_match']:.0%}: weigh that against being a different model."
    )


def _which_4_bit(merges: Merges) -> str:
    near, far = _nearest_first(merges)
    why = _against(merges[near], merges[far])
    return f"To serve it in 4 bit again, quantize the merge onto the {near} base ({why})."


def _only_16_bit(merges: Merges) -> str:
    [ours] = merges.values()
    return (
        "Ship the merge onto the original base: it is the one that the adapter was trained on "
        f"({_measured(ours)} on {counted(ours['rows'], 'held-out row')})."
    )


def _only_4_bit(merges: Merges) -> str:
    [ours] = merges.values()
    return f"Quantized to 4 bit: {_measured(ours)}."


def _nearest_first(merges: Merges) -> list[str]:
    return sorted(merges, key=lambda onto: float(merges[onto]["kl_mean"]))


def _against(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return (
        f"mean KL {ours['kl_mean']:.2g} against {theirs['kl_mean']:.2g} nats per token, "
        f"{ours['identical_answers']:.0%} against {theirs['identical_answers']:.0%} identical greedy answers"
    )


def _measured(ours: Mapping[str, Any]) -> str:
    return f"mean KL {ours['kl_mean']:.2g} nats per token, {ours['identical_answers']:.0%} identical greedy answers"
