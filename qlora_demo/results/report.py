"""A report as one self-contained HTML file, as JSON, and as CSV files in a zip."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ..records import Choice, TrainMetrics
from ..system.disk import require_free, write_bytes_atomically, writing
from ..units import duration, memory
from . import plots, tables
from .answers import speeds
from .history import RunNote
from .verdicts import method, standings, told_apart
from .votes import Comparison, Tally

_TELLING_ROWS = 3
_NEED_BYTES = 32 << 20
_SUMMARY = {
    "steps": "steps",
    "train_loss": "mean training loss",
    "eval_loss": "held-out loss, last measured",
    "eval_step": "held-out loss measured at step",
    "tokens_per_second": "tokens/s in the steps, without padding",
    "peak_memory_bytes": "peak memory",
    "runtime_seconds": "time from start to end, loading included",
    "trainable_parameters": "trained parameters",
    "all_parameters": "all parameters",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Where a spreadsheet would take a cell for a formula."""


@dataclass(frozen=True)
class Report:
    """All that is known of a run; what is None or empty is left out.

    ``evaluation``, ``fidelity`` and ``prompts`` are the run's results, ``conversations`` the chosen ones,
    ``comparisons`` the blind ones with their votes; times are seconds since the epoch.
    """

    title: str
    made_at: float
    run: str
    config: dict[str, Any]
    state: dict[str, Any]
    choices: Sequence[Choice]
    versions: dict[str, str]
    machine: dict[str, str]
    metrics: Sequence[TrainMetrics]
    evaluation: dict[str, Any] | None
    fidelity: dict[str, Any] | None
    prompts: dict[str, Any] | None
    conversations: Sequence[dict[str, Any]]
    note: RunNote
    votes: Tally | None
    comparisons: Sequence[Comparison]


def save(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``html``, ``json`` and ``csv`` (a zip) into a folder, each whole or not at all; where they are.

    The folder is made, and none above: a run that was deleted stays so.  Raises `WorkError` where the disk refuses.
    """
    contents = {"html": to_html(report).encode(), "json": to_json(report).encode(), "csv": to_csv(report)}
    require_free(folder, _NEED_BYTES, "a report")
    with writing(folder):
        folder.mkdir(exist_ok=True)
    paths = _places(folder, report.run)
    for kind, content in contents.items():
        write_bytes_atomically(paths[kind], content)
    return paths


def made(folder: Path, run: str) -> list[Path]:
    """The files of a run's report that are there, the HTML file first."""
    return [path for path in _places(folder, run).values() if path.is_file()]


def to_html(report: Report) -> str:
    """One file that needs no network and runs no script; all text from people and models is escaped."""
    verdicts = told_apart(report.evaluation)
    text: str = _template().render(
        report=report,
        short=[*verdicts, *_said(report)],
        summary=_summary(report.state.get("summary", {})),
        curves=[Markup(curve) for curve in plots.curves(report.metrics)],
        evaluation=_table(tables.evaluation(report.evaluation)),
        verdicts=verdicts,
        method=method(verdicts),
        fields=_table(tables.fields(report.evaluation)),
        scores=Markup(_scores(report.evaluation)),
        telling=list(_telling(report.evaluation)),
        fidelity=_table(tables.fidelity(report.fidelity)),
        votes=_table(tables.votes(report.votes)) if report.votes else "",
        counts=tables.vote_counts(report.votes) if report.votes else "",
    )
    return text


def to_json(report: Report) -> str:
    """Every figure with all its digits; what is not a number is null."""
    return json.dumps(finite(asdict(report)), ensure_ascii=False, indent=2, allow_nan=False)


def to_csv(report: Report) -> bytes:
    """A zip of CSV files, one per table that is not empty."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, rows in _sheets(report).items():
            if rows:
                archive.writestr(f"{name}.csv", _csv(rows))
    return packed.getvalue()


def _said(report: Report) -> Iterable[str]:
    """What the merges and the votes come to."""
    yield from filter(None, [(report.fidelity or {}).get("sentence", ""), report.votes.verdict if report.votes else ""])


def _places(folder: Path, run: str) -> dict[str, Path]:
    return {kind: folder / f"{run}.{suffix}" for kind, suffix in (("html", "html"), ("json", "json"), ("csv", "zip"))}


def _template() -> Any:
    environment = Environment(loader=PackageLoader(__package__), autoescape=True)
    environment.filters |= {"memory": memory, "speeds": speeds, "date": _date, "remarks": tables.remarks}
    return environment.get_template("report.html")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))


def _table(table: tables.Table) -> Markup:
    return Markup(tables.html(table))


def _summary(summary: Mapping[str, Any]) -> dict[str, str]:
    found = {title: _figure(name, summary[name]) for name, title in _SUMMARY.items() if summary.get(name) is not None}
    scored = tables.score_told(summary.get("score"))
    return found | ({"exact match, answered at its end": scored} if scored else {})


def _figure(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return memory(value)
    if name.endswith("_seconds"):
        return duration(value)
    return f"{value:.4f}" if name.endswith("_loss") else f"{value:,.0f}"


def _scores(evaluation: Mapping[str, Any] | None) -> str:
    found = tables.exact_match(evaluation)
    return plots.bars("Exact match by column and split", "exact match (%)", found) if found else ""


def _telling(evaluation: Mapping[str, Any] | None) -> Iterable[dict[str, Any]]:
    """The best, the worst and the most changed rows of the first split, first column against last, each once."""
    splits: Mapping[str, Sequence[dict[str, Any]]] = (evaluation or {}).get("rows", {})
    rows: Sequence[dict[str, Any]] = next(iter(splits.values()), [])
    columns = list(rows[0]["answers"]) if rows else []
    if not columns:
        return
    reasons: dict[int, list[str]] = {}
    for why, places in standings(rows, columns[0], columns[-1], _TELLING_ROWS).items():
        for at in places:
            reasons.setdefault(at, []).append(why)
    yield from (
        {**rows[at], "why": f"row {at + 1}: {', '.join(whys)} under {columns[-1]}"} for at, whys in reasons.items()
    )


def _sheets(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Rows of every table, flat; the figures as they were measured."""
    evaluation, votes = report.evaluation or {}, report.votes
    return {
        "note": [asdict(report.note) | {"tags": ", ".join(report.note.tags)}] if report.note != RunNote() else [],
        "config": [{"field": name, "value": value} for name, value in report.config.items()],
        "metrics": [asdict(line) for line in report.metrics],
        "evaluation": [
            {
                "split": split,
                "column": column,
                "weights": evaluation.get("weights", {}).get(column, ""),
                **_flat(figures),
            }
            for split, columns in evaluation.get("splits", {}).items()
            for column, figures in columns.items()
        ],
        "rows": [
            {
                "split": split,
                "row": at,
                "prompt": row["prompt"],
                "reference": row["reference"],
                "column": column,
                **answer,
            }
            for split, rows in evaluation.get("rows", {}).items()
            for at, row in enumerate(rows, 1)
            for column, answer in row["answers"].items()
        ],
        "fidelity": [{"merge": name, **found} for name, found in (report.fidelity or {}).get("merges", {}).items()],
        "votes": [asdict(rate) for rate in votes.rates] if votes else [],
        "comparisons": [_comparison(one) for one in report.comparisons],
        "conversations": list(_answers(report.conversations)),
        "prompts": list(_answers((report.prompts or {}).get("prompts", []))),
        "versions": [{"name": name, "version": value} for name, value in report.versions.items()],
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    content = one.content
    said = {f"{name} said": content.answers[name].get("text", "") for name in content.shown if name in content.answers}
    shown = ", ".join(content.shown)
    return {"time": one.time, "prompt": content.prompt, "shown": shown, "choice": one.choice, **said}


def _answers(talks: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for talk in talks:
        for column, answer in talk["answers"].items():
            asked = {name: talk[name] for name in ("system", "prompt") if name in talk}
            yield {**asked, "column": column, **_flat(answer)}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        f"{name} {key}": one for name, part in values.items() if isinstance(part, dict) for key, one in part.items()
    }
    return {name: value for name, value in values.items() if not isinstance(value, dict)} | nested


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    head = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, head)
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula, behind an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def finite(value: Any) -> Any:
    """The same as JSON can hold it: what is not a number is None."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
