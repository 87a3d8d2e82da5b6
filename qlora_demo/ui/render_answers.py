"""Columns and their answers -> HTML.  Imports no gradio; everything that a person or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ..columns import title
from ..plan.placement import Placement, UnitKind, says, unit_name
from ..records import Answer, Resident
from ..results import differences
from ..units import counted, duration, memory, percent
from .talk import Talk

_FINISH = {"stop": "ended by itself", "length": "cut off at the length limit", "stopped": "stopped by hand"}
_COLOURS: dict[UnitKind, str] = {
    **dict.fromkeys(("nf4", "nf4-single", "fp4", "fp4-single"), "#3b82f6"),
    "int8": "#0891b2",
    "16bit": "#d97706",
    "merged": "#059669",
    "merged-4bit": "#8b5cf6",
}


def letter(place: int) -> str:
    """What a column is called while nobody may know what it is."""
    return "ABCD"[place]


def slot_head(talk: Talk, place: int, resident: Resident | None, waiting: str) -> str:
    """Name, precision, what it shares, memory, first-use costs; a letter in blind mode; else what it waits for."""
    column = talk.slot(place)
    if talk.blind:
        return f'<div class="head"><b>{letter(place)}</b><small>hidden until the vote</small></div>'
    name = escape(title(column, talk.run)) if column else "…"
    if resident is None:
        return f'<div class="head"><b>{name}</b><small>{escape(waiting)}</small></div>'
    shared = f", shares the weights of {escape(resident.shares)}" if resident.shares else ""
    first = f"loaded in {duration(resident.load_seconds)}, warmed up in {duration(resident.warm_up_seconds)}"
    other = f" · {escape(resident.column.source)}" if resident.column.source != talk.run else ""
    return (
        f'<div class="head" data-column="{escape(resident.column.name)}"><b>{escape(resident.title)}{other}</b>'
        f"<small>{resident.precision} · {memory(resident.model_bytes)}{shared}<br>{escape(resident.note)}"
        f"<br>{first}</small></div>"
    )


def queued(place: int) -> str:
    """Where somebody stands who waits for an answer; told to screen readers as it changes."""
    before = "you are next" if place == 1 else f"{place - 1} before you"
    return f'<p class="queued" role="status">Place {place} in the queue: {before}.</p>'


def slot_foot(answer: Answer | None, blind: bool) -> str:
    """What the answer cost, how it ended, what answered; in blind mode only whether it has ended."""
    if answer is None:
        return '<div class="foot"></div>'
    if answer.error:
        return f'<div class="foot bad">{escape(answer.error)}</div>'
    if blind:
        return f'<div class="foot">{"answered" if answer.finish else "…"}</div>'
    table = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(answer))
    proof = f"<small>answered by: {escape(str(answer.proof))}</small>" if answer.proof else ""
    decode = f"<small>decode: {escape(answer.decode)}</small>" if answer.decode else ""
    return f'<div class="foot"><dl>{table}</dl>{proof}{decode}</div>'


_MARKED = 'Marked: <mark class="gone">only on the left</mark> <mark class="new">only on the right</mark>.'


def latency(answers: Mapping[str, Answer], blind: bool) -> str:
    """Time to first token and per output token of all columns as bars, on one scale each."""
    ended = [answer for answer in answers.values() if answer.finish]
    if blind or not ended:
        return ""
    return (
        '<div class="latency">'
        + _bars("time to first token", {a.column: a.timing.ttft_seconds for a in ended})
        + _bars("median time per output token", {a.column: a.timing.tpot_median_seconds or 0 for a in ended})
        + "</div>"
    )


def difference(left: Answer, right: Answer) -> str:
    """Two answers side by side, differing words marked, and where their tokens part."""
    at = differences.first_difference(left.token_ids, right.token_ids)
    if at is None:
        return f'<p class="same">The same answer, token for token: {len(left.token_ids)} tokens.</p>'
    if left.text == right.text:
        note = f"The same text; the tokens differ from token {at + 1} on."
    else:
        note = f"The first differing token is token {at + 1}."
    ours, theirs = differences.words(left.text, right.text)
    sides = "".join(
        f"<div><pre>{differences.html(pieces, kind)}</pre></div>" for pieces, kind in ((ours, "gone"), (theirs, "new"))
    )
    return f'<p>{note} {_MARKED}</p><div class="sides">{sides}</div>'


def placement(plan: Placement) -> str:
    """What is and would be in memory, as a stacked bar against the device, and what will be done."""
    total = max(plan.device.total_bytes, plan.needed_bytes)
    evicted = {unit for unit, _ in plan.evict}
    parts = [(unit_name(unit), size, _COLOURS[unit.kind]) for unit, size in plan.resident if unit not in evicted]
    parts += [(f"{p.column.name}: {unit_name(p.unit)}", p.added_bytes, _COLOURS[p.unit.kind]) for p in plan.places]
    parts.append(("room to work in", plan.working_bytes, "#9ca3af"))
    shown = [(name, size, colour) for name, size, colour in parts if size]
    bar = "".join(
        f'<i style="width:{100 * size / total:.2f}%;background:{colour}" title="{escape(name)}: {memory(size)}"></i>'
        for name, size, colour in shown
    )
    key = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} {memory(size)}</span>' for name, size, colour in shown
    )
    kind = "" if plan.fits else " bad"
    label = f"{memory(plan.needed_bytes)} of {memory(plan.device.total_bytes)}"
    return (
        f'<div class="placement"><div class="stack" role="img" aria-label="{label}">{bar}</div>'
        f'<div class="key">{key}</div><p class="says{kind}">{escape(says(plan))}</p></div>'
    )


def _figures(answer: Answer) -> list[tuple[str, str]]:
    timing = answer.timing
    missing = "–" if answer.finish else "…"
    median, p95, share = timing.tpot_median_seconds, timing.tpot_p95_seconds, answer.bandwidth_share
    return [
        ("time to first token", duration(timing.ttft_seconds) if timing.new_tokens else missing),
        ("speed", f"{rate:.1f} tokens/s" if (rate := timing.tokens_per_second) else missing),
        ("per token, median", duration(median) if median else missing),
        ("per token, p95", duration(p95) if p95 else missing),
        ("answer", counted(timing.new_tokens, "token")),
        ("total", duration(timing.total_seconds)),
        ("memory", memory(answer.model_bytes)),
        ("memory bandwidth used", percent(share) if share else missing),
        ("end", _FINISH[answer.finish] if answer.finish else "…"),
    ]


def _bars(label: str, values: Mapping[str, float]) -> str:
    most = max(values.values()) or 1
    rows = "".join(
        f'<div><span>{escape(name)}</span><div class="bar"><div style="width:{100 * value / most:.1f}%"></div></div>'
        f"<span>{duration(value) if value else '–'}</span></div>"
        for name, value in values.items()
    )
    return f"<div><b>{label}</b>{rows}</div>"
