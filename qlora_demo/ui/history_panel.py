"""Every run: a table to filter and sort, notes and tags, curves over each other, figures and configs side by side."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from ..errors import RunError
from ..results import history, tables
from ..runs import Run
from ..services import Services
from . import render
from . import render_training as show
from .gate import Gate
from .listed import listed, renewed

_MOST = 6


def build(services: Services, gate: Gate) -> SimpleNamespace:
    """Draw the panel and wire it; ``refresh`` brings ``drawn`` up to date where something changed."""
    parts = _draw()
    panel = History(services)
    noted = [parts.noted, parts.note, parts.tags]
    chosen = [parts.chosen, parts.noted]
    gate.on(parts.chosen.change, panel.lay_side_by_side, chosen, [parts.compared, *noted], needs="visitor")
    gate.on(parts.save.click, panel.annotate, [parts.chosen, *noted], [parts.seen, parts.noted], needs="operator")
    gate.guard(parts.note, parts.tags)
    drawn = [parts.table, parts.chosen, parts.compared, parts.seen]
    return SimpleNamespace(refresh=panel.refresh, read=[parts.seen, parts.chosen], drawn=drawn, chosen=parts.chosen)


class History:
    """What the panel does; all of it is in the run directories."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def refresh(self, seen: Any, names: list[str]) -> list[Any]:
        """The table, the runs that can be chosen and those laid side by side, where something changed since `seen`."""
        runs = self.services.runs.all()
        kept = [name for name in names if name in [run.id for run in runs]]
        now = [kept, [[run.id, run.state.status, *history.stamps(run)] for run in runs]]
        if now == seen:
            return [gr.skip()] * 4
        listing = [gr.skip()] * 2
        if not seen or now[1] != seen[1]:
            choices = [(render.run_label(run), run.id) for run in runs]
            listing = [gr.update(value=render.runs_table(runs), visible=bool(runs)), renewed(choices, kept, names)]
        return [*listing, self._side_by_side(kept), now]

    def lay_side_by_side(self, names: list[str], noted: str | None) -> list[Any]:
        """Curves over each other, figures side by side, what the first two differ in, and the first one's note: left
        alone where the page has that run's, ``noted``, already, for someone may be writing it."""
        first = names[0] if names else ""
        if first == (noted or "").partition("@")[0]:
            return [self._side_by_side(names), *[gr.skip()] * 3]
        if not first:
            return [self._side_by_side(names), "", "", ""]
        run = self.services.runs.get(first)
        stamp, note = _stamp(run), history.read_note(run)
        return [self._side_by_side(names), stamp, note.text, ", ".join(note.tags)]

    def _side_by_side(self, names: list[str]) -> str:
        runs = [self.services.runs.get(name) for name in names[:_MOST]]
        if not runs:
            return ""
        curves = show.overlay([(run.id, self.services.runs.metrics(run.id)) for run in runs])
        table = tables.html(history.side_by_side(self.services.runs, runs))
        return table + curves + (show.difference(runs[0], runs[1]) if len(runs) > 1 else "")

    def annotate(self, names: list[str], noted: str, text: str, tags: str) -> list[Any]:
        """Keep a note and tags with the first chosen run; the table is drawn anew for it.  A note that is another
        run's than ``noted``, or that somebody changed since, is not put in the place of what is there."""
        if not names:
            raise RunError("run: none is chosen; choose one in the history first")
        run = self.services.runs.get(names[0])
        if noted.partition("@")[0] != run.id:
            raise RunError(f"note: the one of {run.id} is still loading; try again in a moment")
        if noted != _stamp(run):
            raise RunError(f"note: somebody changed the one of {run.id}; choose the run anew to see it")
        history.write_note(run, text, tags)
        gr.Info(f"The note of {run.id} is saved.")
        return [None, _stamp(run)]


def _stamp(run: Run) -> str:
    """A run and the state of its note."""
    return f"{run.id}@{history.stamps(run)[0]}"


def _draw() -> SimpleNamespace:
    parts = SimpleNamespace(seen=gr.State(None))
    with gr.Accordion("History", open=True):
        parts.table = gr.Dataframe(
            render.runs_table([]),
            visible=False,
            interactive=False,
            elem_id="runs",
            wrap=False,
            show_search="filter",
            max_height=320,
        )
        parts.chosen = listed(
            label="Lay side by side (up to six runs)",
            info="curves over each other, figures, and what the first two differ in",
            multiselect=True,
            max_choices=_MOST,
            elem_id="overlay",
        )
        parts.compared = gr.HTML(elem_id="compared")
        with gr.Row():
            parts.noted = gr.Textbox(label="Run and state of the note", visible="hidden", elem_id="noted")
            parts.note = gr.Textbox(label="Note on the first of them", lines=2, elem_id="note", scale=3)
            parts.tags = gr.Textbox(label="Tags", info="separated by commas", elem_id="tags", scale=2)
            parts.save = gr.Button("Save note", size="sm", elem_id="save-note", scale=1, min_width=100)
    return parts
