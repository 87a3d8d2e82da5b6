"""What was found -> tables for people: the page, the report and the model card show the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from ..units import counted, percent
from .chance import interval
from .votes import Tally

Result = Mapping[str, Any]
_FIGURES = {
    "rows": "rows",
    "loss": "loss (nats per token)",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "exact_match": "exact match",
    "valid_json": "valid JSON",
    "rouge_l": "ROUGE-L",
}
_FIDELITY = {
    "kl_mean": "mean KL divergence (nats)",
    "kl_worst": "worst KL divergence (nats)",
    "kl_answer_mean": "mean KL on the answers only (nats)",
    "top1_agreement": "same most likely token",
    "loss_change": "change in loss (nats per token)",
    "exact_match_change": "change in exact match",
    "identical_answers": "identical greedy answers",
    "rows": "held-out rows",
    "tokens": "tokens",
}
_SHARES = frozenset({"token_accuracy", "exact_match", "valid_json", "top1_agreement", "identical_answers"})
_SCORE, _INTERVAL = "exact_match", "95% interval"
_COUNTS = frozenset({"rows", "tokens"})


@dataclass(frozen=True)
class Table:
    """Text in rows, the first cell of each naming it; empty where nothing was found."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def evaluation(result: Result | None) -> Table:
    """Figures per split and column, and the weights that they are of; beside the task's own score the interval that so
    many rows leave it in."""
    found, weights = list(_columns(result)), (result or {}).get("weights", {})
    used = [name for name in _FIGURES if any(name in figures for _, _, figures in found)]
    heads = [head for name in used for head in ((_FIGURES[name], _INTERVAL) if name == _SCORE else (_FIGURES[name],))]
    rows = (
        (
            split,
            column,
            *([weights.get(column, "–")] if weights else []),
            *(cell for name in used for cell in _cells(name, figures)),
        )
        for split, column, figures in found
    )
    return Table(("split", "column", *(["weights"] if weights else []), *heads), tuple(rows))


def fields(result: Result | None) -> Table:
    """Of a task that answers in JSON: the share of rows where each field is right."""
    found = [(split, column, figures["fields"]) for split, column, figures in _columns(result) if figures.get("fields")]
    names = list(dict.fromkeys(name for *_, shares in found for name in shares))
    rows = (
        (split, column, *(figure("exact_match", shares.get(name)) for name in names)) for split, column, shares in found
    )
    return Table(("split", "column", *(f"{name} correct" for name in names)), tuple(rows))


def fidelity(result: Result | None) -> Table:
    """Each merge against the adapter model."""
    merges: Mapping[str, Any] = (result or {}).get("merges", {})
    used = [name for name in _FIDELITY if any(name in found for found in merges.values())]
    rows = ((_FIDELITY[name], *(figure(name, found.get(name)) for found in merges.values())) for name in used)
    return Table(("against the adapter model", *merges), tuple(rows))


def remarks(result: Result | None) -> str:
    """What a result is not of: what was not done yet, held-out rows that were left out, and adapters that others have
    taken the place of."""
    rows, outdated = (result or {}).get("left_out", 0), (result or {}).get("outdated", [])
    left = f"Left out: {counted(rows, 'row')}, too long for a model's context or without a prompt." if rows else ""
    old = f"Of the adapter before its run was resumed: {', '.join(outdated)}." if outdated else ""
    part = "" if (result or {}).get("complete", True) else "Based on what was done so far."
    return " ".join(filter(None, (part, left, old)))


def votes(tally: Tally) -> Table:
    """Win rates with their intervals."""
    rows = (
        (one.column, f"{one.wins} of {one.shown}", percent(one.rate), f"{percent(one.low)} to {percent(one.high)}")
        for one in tally.rates
    )
    return Table(("column", "wins", "win rate", _INTERVAL), tuple(rows))


def vote_counts(tally: Tally) -> str:
    """How many votes there are, and how they were counted."""
    count = counted(tally.votes, "vote")
    earlier = (
        f"Not counted: {counted(tally.earlier, 'vote')} on an adapter before its run was resumed. "
        if tally.earlier
        else ""
    )
    return f"{count}: {counted(tally.ties, 'tie')}, {tally.all_bad} all bad. {earlier}{tally.method}"


def exact_match(result: Result | None) -> dict[str, dict[str, float]]:
    """The task's own score in percent, by column and split."""
    found: dict[str, dict[str, float]] = {}
    for split, column, figures in _columns(result):
        if "exact_match" in figures:
            found.setdefault(column, {})[split] = 100 * figures["exact_match"]
    return found


def score(figures: Mapping[str, Any]) -> tuple[str, str]:
    """The task's own score, and the interval that so many rows leave it in."""
    share, rows = figures.get(_SCORE), figures.get("rows")
    return figure(_SCORE, share), "–" if share is None or not rows else interval(share, rows)


def score_told(figures: Mapping[str, Any] | None) -> str:
    """The task's own score in words, with the rows that it is of; nothing where there is none."""
    share, rows = (figures or {}).get(_SCORE), (figures or {}).get("rows")
    return "" if share is None or not rows else f"{percent(share)} of {counted(rows, 'row')}"


def figure(name: str, value: float | None) -> str:
    """One figure of an evaluation or a fidelity result, by its name."""
    if value is None:
        return "–"
    if name in _SHARES:
        return percent(value)
    if name == "exact_match_change":
        return f"{100 * value:+.1f} points"
    if name == "loss_change":
        return f"{value:+.4f}"
    if name in _COUNTS:
        return f"{value:,.0f}"
    return f"{value:.2g}" if name.startswith("kl") else f"{value:.3g}"


def html(table: Table) -> str:
    """Escaped; nothing at all where the table is empty."""
    if not table.rows:
        return ""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    body = "".join(f"<tr>{_row(row)}</tr>" for row in table.rows)
    return wide(f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def markdown(table: Table) -> str:
    """Of cells that are Markdown already."""
    lines = (table.head, tuple("---" for _ in table.head), *table.rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wide(table: str) -> str:
    """A table that may be wider than the page, to be scrolled with the keyboard too."""
    return f'<div class="wide" role="group" aria-label="Table" tabindex="0">{table}</div>'


def _cells(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    return score(figures) if name == _SCORE else (figure(name, figures.get(name)),)


def _row(row: Iterable[str]) -> str:
    first, *rest = row
    return f'<th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(text)}</td>" for text in rest)


def _columns(result: Result | None) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for split, columns in (result or {}).get("splits", {}).items():
        for column, figures in columns.items():
            yield split, column, figures
