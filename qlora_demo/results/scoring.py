"""An answer against its reference: the score of a task whose answers are JSON objects, or plain text."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rouge_score import rouge_scorer


@dataclass(frozen=True)
class Score:
    """``fields``: each field of a JSON reference on its own.  ``valid_json`` is None where the reference is text;
    ``rouge_l``, the F-measure of the longest common subsequence of words, where it is JSON."""

    exact_match: bool
    valid_json: bool | None = None
    fields: dict[str, bool] = field(default_factory=dict)
    rouge_l: float | None = None


def score(answer: str, reference: str) -> Score:
    """Compare parsed values where the reference is a JSON object, else the text without surrounding space; of an answer
    that a model reasons before, what comes after."""
    if _REASONED not in reference:  # a chat template that knows reasoning writes an empty one before each answer
        answer = answer.rpartition(_REASONED)[2]
    expected = _parse(reference)
    if not isinstance(expected, dict):
        exact = answer.strip() == reference.strip()
        return Score(exact, rouge_l=1.0 if exact else _rouge_l(answer, reference))
    given = _parse(answer)
    fields = given if isinstance(given, dict) else {}
    same = {name: name in fields and _same(fields[name], value) for name, value in expected.items()}
    return Score(_same(given, expected), given is not _INVALID, same)


def summarize(scores: list[Score]) -> dict[str, Any]:
    """Shares over all rows, of a field over those whose reference has it; what does not apply to the task is left
    out."""
    rows = len(scores)
    result: dict[str, Any] = {"rows": rows, "exact_match": sum(s.exact_match for s in scores) / rows}
    json_scores = [s for s in scores if s.valid_json is not None]
    if json_scores:
        result["valid_json"] = sum(bool(s.valid_json) for s in json_scores) / len(json_scores)
        names = dict.fromkeys(name for s in json_scores for name in s.fields)
        result["fields"] = {name: fmean(s.fields[name] for s in json_scores if name in s.fields) for name in names}
    texts = [s.rouge_l for s in scores if s.rouge_l is not None]
    if texts:
        result["rouge_l"] = sum(texts) / len(texts)
    return result


class _Words:
    """Words of any script, as the library's own tokenizer knows ASCII only; characters where a script has no space
    between words.  Time and memory of the score grow with the product of both counts, so no more than `_MOST_WORDS` of
    each."""

    def tokenize(self, text: str) -> list[str]:
        spaced = "".join(one if _in_words(one) else " " for one in text.lower())
        return _UNSPACED.sub(r" \g<0> ", spaced).split()[:_MOST_WORDS]


def _in_words(one: str) -> bool:
    return one.isalnum() or unicodedata.category(one).startswith("M")


_INVALID = object()
_REASONED = "</think>"
_MOST_WORDS = 2000
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, kana and Han."""
_SCORER = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())


def _rouge_l(answer: str, reference: str) -> float:
    return float(_SCORER.score(reference, answer)["rougeL"].fmeasure)


def _same(given: Any, expected: Any) -> bool:
    """Equal as JSON: `1`, `1.0` and `true` are three values."""
    return given is not _INVALID and json.dumps(given, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _INVALID
