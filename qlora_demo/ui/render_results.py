"""What evaluation, prompt sets, fidelity and votes found -> HTML.  Imports no gradio; text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..jobs import Job
from ..results import differences, plots, tables
from ..results.answers import speeds
from ..results.verdicts import method, standings, told_apart
from ..results.votes import Tally
from ..units import counted
from . import render

PAGE_ROWS = 10
Result = Mapping[str, Any]


def job(last: Job | None) -> str:
    """What is at work, how far it is, or how it ended."""
    if last is None:
        return ""
    if last.error:
        return render.problem(f"{last.kind}: {last.error}")
    state = "" if last.going else " · ended"
    bar = render.bar(last.progress.fraction or 0, last.kind)
    return f"<p>{escape(last.kind)} of {escape(last.run)}: {escape(last.progress.text)}{state}</p>{bar}"


def job_alone(last: Job | None) -> str:
    """Which work there is and whether it is in progress, no more."""
    if last is None:
        return ""
    end = "in progress" if last.going else "failed" if last.error else "ended"
    return f"<p>{escape(last.kind)} of {escape(last.run)}: {end}</p>"


def evaluation(result: Result | None) -> str:
    """Figures per split and column, the task's own score as bars, and how often each field is right."""
    if not result or not result.get("splits"):
        return '<p class="empty">Not measured yet. Press <b>Before and after</b>: every column on held-out rows.</p>'
    plot = plots.bars("Exact match by column and split", "exact match (%)", tables.exact_match(result))
    told = told_apart(result)
    verdicts = "".join(f"<p><b>{escape(one)}</b></p>" for one in told)
    figures = tables.html(tables.evaluation(result)) + plot + tables.html(tables.fields(result))
    return _remarks(result) + verdicts + figures + f"<p><small>{method(told)}</small></p>"


def rows_shown(result: Result | None, split: str | None, which: str, page: int) -> str:
    """Rows of a split with every column's answer: all of them by page, or the best, worst and most changed."""
    rows = (result or {}).get("rows", {}).get(split or "", [])
    if not rows:
        return '<p class="empty">No rows yet. Press <b>Before and after</b>.</p>'
    columns = list(rows[0]["answers"])
    chosen = list(range(len(rows)))[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    if which != "all":
        chosen = standings(rows, columns[0], columns[-1], PAGE_ROWS)[which]
    note = f"{which} rows, by the reference's loss under {escape(columns[-1])}" if which != "all" else ""
    if which == "most changed":
        note = f"rows whose reference's loss changed most from {escape(columns[0])} to {escape(columns[-1])}"
    return f"<p>{note}</p>" + _answers_table(rows, chosen, with_reference=True)


def prompts_shown(result: Result | None, page: int) -> str:
    """A page of a prompt set: every column's answer with its times, differences to the first column marked."""
    rows = (result or {}).get("prompts", [])
    if not rows:
        return '<p class="empty">No prompt set yet. Paste prompts, one per line, and press <b>Ask all columns</b>.</p>'
    chosen = list(range(len(rows)))[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    head = f"<p>{counted(len(rows), 'prompt')}</p>"
    return head + _remarks(result) + _answers_table(rows, chosen, with_reference=False)


def fidelity(result: Result | None) -> str:
    """Every merge against the adapter model, and which to ship."""
    if not result or not result.get("merges"):
        return '<p class="empty">Not measured yet. Press <b>Merge fidelity</b>: it loads every merge in turn.</p>'
    return f"<p><b>{escape(result.get('sentence', ''))}</b></p>{_remarks(result)}{tables.html(tables.fidelity(result))}"


def _remarks(result: Result | None) -> str:
    found = tables.remarks(result)
    return f"<p>{escape(found)}</p>" if found else ""


def votes(tally: Tally | None) -> str:
    """Win rates with their intervals, the verdict, and the method."""
    if tally is None or not tally.votes + tally.earlier:
        return '<p class="empty">No votes yet. Tick <b>Blind</b> on the Chat tab, ask something, and vote.</p>'
    counts = escape(tables.vote_counts(tally))
    return f"<p><b>{escape(tally.verdict)}</b></p>{tables.html(tables.votes(tally))}<p>{counts}</p>"


def exported(result: Result | None) -> str:
    """Where the last export is, how near it is to what was trained, and what loads it."""
    if not result or "load" not in result:
        return ""
    nearness = (
        f", mean KL {result['fidelity']['kl_mean']:.2g} nats from the adapter model" if "fidelity" in result else ""
    )
    what = f"<p><b>{escape(result['what'])}</b> in {escape(result['path'])}{nearness}</p>"
    return what + "".join(f"<p>{name}</p><pre>{escape(text)}</pre>" for name, text in result["load"].items())


def _answers_table(rows: Sequence[Mapping[str, Any]], chosen: Sequence[int], with_reference: bool) -> str:
    columns = list(rows[0]["answers"])
    head = ["row", "prompt", *(["reference"] if with_reference else []), *columns]
    body = "".join(_answers_row(at, rows[at], columns, with_reference) for at in chosen)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    against = "the reference" if with_reference else f"the answer of {escape(columns[0])}"
    marked = f'<p><mark class="new">Marked</mark>: what is not in {against}.</p>'
    return marked + tables.wide(f'<table class="results answers"><tr>{heads}</tr>{body}</table>')


def _answers_row(at: int, row: Mapping[str, Any], columns: Sequence[str], with_reference: bool) -> str:
    against = row["reference"] if with_reference else row["answers"].get(columns[0], {}).get("text", "")
    cells = [f"<td>{at + 1}</td><td>{escape(row['prompt'])}</td>"]
    if with_reference:
        cells.append(f"<td>{escape(row['reference'])}</td>")
    cells += [_answer_cell(row["answers"].get(name), against) for name in columns]
    return "<tr>" + "".join(cells) + "</tr>"


def _answer_cell(answer: Mapping[str, Any] | None, against: str) -> str:
    if answer is None:
        return "<td>–</td>"
    if answer.get("error"):
        return f'<td class="bad">{escape(answer["error"])}</td>'
    _, ours = differences.words(against, answer["text"])
    note = _answer_note(answer)
    return f"<td>{differences.html(ours, 'new')}<small>{note}</small></td>"


def _answer_note(answer: Mapping[str, Any]) -> str:
    if "ttft_seconds" in answer:
        return speeds(answer)
    right = "correct" if answer["exact_match"] else "incorrect"
    return f"{right}, loss {answer['loss']:.3g}"
