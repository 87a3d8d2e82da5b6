"""An answer against its reference: the score of a task whose answers are JSON objects, or plain text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """``fields``: each field of a JSON reference on its own; ``valid_json`` is None where the reference is text."""

    exact_match: bool
    valid_json: bool | None = None
    fields: dict[str, bool] = field(default_factory=dict)


def score(answer: str, reference: str) -> Score:
    """Compare parsed values where the reference is a JSON object, else the text without surrounding space."""
    expected = _parse(reference)
    if not isinstance(expected, dict):
        return Score(answer.strip() == reference.strip())
    given = _parse(answer)
    fields = given if isinstance(given, dict) else {}
    same = {name: name in fields and _same(fields[name], value) for name, value in expected.items()}
    return Score(_same(given, expected), given is not _INVALID, same)


def summarize(scores: list[Score]) -> dict[str, Any]:
    """Shares over all rows; what does not apply to the task is left out."""
    rows = len(scores)
    result: dict[str, Any] = {"rows": rows, "exact_match": sum(s.exact_match for s in scores) / rows}
    json_scores = [s for s in scores if s.valid_json is not None]
    if json_scores:
        result["valid_json"] = sum(bool(s.valid_json) for s in json_scores) / len(json_scores)
        names = dict.fromkeys(name for s in json_scores for name in s.fields)
        result["fields"] = {n: sum(s.fields.get(n, False) for s in json_scores) / len(json_scores) for n in names}
    return result


_INVALID = object()


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
