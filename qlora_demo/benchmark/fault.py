"""Whether what claims to be a benchmark's result is one: a file that was sent, or that somebody damaged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .tables import COLUMNS

_COUNTED = ("r", "max_length", "per_device_train_batch_size", "gradient_accumulation_steps")
_RECKONED_FROM = ("read_bytes", "bandwidth_bytes_per_second", "step_median_seconds")
_RANK_CASE = re.compile(r"r \d{1,6}, .+")
_MOST_NUMBER, _LAST_TIME = 1e18, 1e11


def fault(result: Any) -> str:
    """The first field of a result that is not as it is read here and on the page; empty where all are."""
    return next((name for name, fine in _checks(result) if not fine), "")


def _checks(result: Any) -> Iterable[tuple[str, bool]]:
    """Each field and whether it may be read; what follows relies on what was fine before."""
    yield "the whole", isinstance(result, dict)
    yield "kind", isinstance(result.get("kind"), str) and result["kind"] in COLUMNS
    yield "rows", isinstance(result.get("rows"), list)
    yield "cases", _is_number(result.get("cases", 0))
    yield from ((name, _is_text(result.get(name, ""))) for name in ("id", "state", "error", "method"))
    yield from ((name, _is_time(result.get(name, 0))) for name in ("started_at", "ended_at"))
    for name in ("machine", "options", "config", "progress"):
        yield name, isinstance(result.get(name, {}), dict)
    yield from ((f"machine.{name}", _is_text(value)) for name, value in result.get("machine", {}).items())
    yield "options.run", _is_text(result.get("options", {}).get("run", ""))
    for name in ("options", "config"):
        yield name, all(value is None or _is_scalar(value) for value in result.get(name, {}).values())
    if "config" in result:
        config = result["config"]
        yield from ((f"config.{name}", _is_text(config.get(name))) for name in ("model", "target_modules"))
        yield from ((f"config.{name}", _is_number(config.get(name))) for name in _COUNTED)
    if "progress" in result:
        yield "progress.text", _is_text(result["progress"].get("text"))
        yield "progress.fraction", _is_number(result["progress"].get("fraction"))
    again = result.get("again", {})
    yield "again", isinstance(again, dict)
    yield "again.case", _is_text(again.get("case", ""))
    yield "again.step_median_seconds", _is_number(again.get("step_median_seconds") or 0)
    for at, row in enumerate(result["rows"]):
        yield from ((f"rows[{at}]{name}", fine) for name, fine in _row_checks(row, result["kind"]))


def _row_checks(row: Any, kind: str) -> Iterable[tuple[str, bool]]:
    yield "", isinstance(row, dict)
    yield ".case", _is_text(row.get("case")) and (kind != "rank" or bool(_RANK_CASE.fullmatch(row["case"])))
    yield ".fits", isinstance(row.get("fits", False), bool)
    yield ".error", _is_text(row.get("error", ""))
    yield ".capped", isinstance(row.get("capped", []), list)
    yield ".batch", ("batch" in row) == ("prompt_tokens" in row)
    yield from ((f".{name}", _is_number(row.get(name, 0))) for name in ("batch", "prompt_tokens"))
    yield from ((f".{name}", _is_number(row.get(name, 0))) for name in _RECKONED_FROM)
    yield from ((f".{name}", isinstance(row.get(name, False), bool)) for name in ("checkpointing", "fp16"))
    yield ".kernels", _is_text(row.get("kernels", ""))
    yield ".shape", isinstance(row.get("shape", {}), dict) and all(map(_is_scalar, row.get("shape", {}).values()))
    for name, (_, form) in COLUMNS[kind].items():
        yield f".{name}", row.get(name) is None or (_is_text if form is str else _is_number)(row[name])
    yield ".score", isinstance(row.get("score", {}), dict)
    yield ".score.exact_match", _is_share(row.get("score", {}).get("exact_match", 0))
    yield ".score.rows", isinstance(count := row.get("score", {}).get("rows", 0), int) and 0 <= count < _MOST_NUMBER


def _is_text(value: Any) -> bool:
    """Whether it can be written: half of a surrogate pair cannot."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool) or _is_text(value) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_NUMBER


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_time(value: Any) -> bool:
    return _is_number(value) and 0 <= value < _LAST_TIME
