"""The Evaluate tab: before and after, merge fidelity, prompt sets, votes, report, export.

Work runs as a job beside the page: closing the tab leaves it running, and what it found is in the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import gradio as gr

from .. import columns as grammar
from ..catalog import DEFAULT_COLUMNS, FIDELITY_ROWS
from ..config import GenerationSettings
from ..errors import ConfigError
from ..jobs import Work, read_result, told_result
from ..records import ExportKind, ExportRequest, MergeBase
from ..results import report as reports
from ..results.exporting import base_for, export_folder, push
from ..results.promptsets import ask_all, checked, conversation, read_prompts
from ..results.reporting import write_report
from ..runs import ADAPTER_WEIGHTS
from ..services import Services
from . import render_results as show
from .gate import Gate, visitor_of
from .listed import listed, renewed
from .offered import offered
from .run_choices import column_choices, examples, needed_run

_POLL_SECONDS = 2
_WHICH = ["all", "best", "worst", "most changed"]


def build(services: Services, gate: Gate) -> gr.Dropdown:
    """Draw the tab and wire it; the run dropdown, for the page to refresh when the tab opens."""
    parts = _draw()
    judge = Judge(services)
    drawn = [parts.job, parts.table, parts.split, parts.rows, parts.fidelity]
    drawn += [parts.prompts_table, parts.votes, parts.exported, parts.seen]
    where = [parts.run, parts.split, parts.which, parts.page, parts.prompts_page, parts.seen]
    chosen = [parts.run, parts.names]
    export = [parts.run, parts.what, parts.onto]
    for button, begin, inputs in (
        (parts.evaluate, judge.evaluate, [*chosen, parts.limit]),
        (parts.faithful, judge.fidelity, [parts.run, parts.limit]),
        (parts.ask, judge.ask, [*chosen, parts.prompts, parts.prompts_file]),
        (parts.export, judge.export, export),
    ):
        gate.on(button.click, begin, inputs, parts.job, needs="operator")
    gate.on(
        parts.push.click, judge.push, [*export, parts.repo, parts.token], [parts.job, parts.token], needs="operator"
    )
    gate.on(parts.stop.click, services.jobs.stop, needs="operator")
    gate.on(gr.Timer(_POLL_SECONDS).tick, judge.poll, where, drawn, needs="visitor", concurrency_limit=None)
    for control in (parts.run, parts.split, parts.which, parts.page, parts.prompts_page):
        gate.on(control.change, judge.redraw, where, drawn, needs="visitor")
    gate.on(parts.run.change, judge.columns, parts.run, [parts.names, parts.files], needs="visitor")
    gate.on(parts.report.click, judge.report, parts.run, parts.files, needs="operator", show_progress="full")
    gate.guard(parts.prompts, parts.prompts_file, parts.what, parts.onto, parts.repo, parts.token)
    run: gr.Dropdown = parts.run
    return run


class Judge:
    """What the tab's buttons do; all state is in the run's folder, the vote store and the job."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def columns(self, run: str | None, request: gr.Request) -> list[Any]:
        """What can be measured of a run, and for operators its report, once it was made."""
        made = reports.made(self.services.runs.path(run) / "report", run) if run and self._is_operator(request) else []
        return [gr.update(choices=column_choices(self.services.runs, run)), _files(made)]

    def evaluate(self, run: str | None, names: list[str], limit: float | None) -> str:
        """Figures of the columns on the run's held-out rows."""
        columns, rows = grammar.parse_all(names, needed_run(run)), _limit(limit)
        return self._start(
            "evaluation", run, lambda halt: self.services.engine().evaluate(run or "", columns, rows, halt)
        )

    def fidelity(self, run: str | None, limit: float | None) -> str:
        """Every merge against the adapter model."""
        rows = _limit(limit)
        return self._start("fidelity", run, lambda halt: self.services.engine().fidelity(run or "", rows, halt))

    def ask(self, run: str | None, names: list[str], text: str, file: str | None) -> str:
        """Every column's greedy answer to every prompt of a set."""
        columns = grammar.parse_all(names, needed_run(run))
        prompts = read_prompts(Path(file)) if file else checked(text.split("\n"), "the box")
        _, system = examples(self.services.runs, run)
        asked = [conversation(system, prompt) for prompt in prompts]
        settings = GenerationSettings()
        return self._start("prompts", run, lambda halt: ask_all(self.services.engine(), columns, asked, settings, halt))

    def export(self, run: str | None, what: ExportKind, onto: MergeBase | Literal[""]) -> str:
        """Write an adapter, or a merged model that is verified, with its model card, into the run's folder."""
        request = ExportRequest(needed_run(run), what, onto or None)
        return self._start("export", run, lambda halt: self.services.engine().export(request, halt))

    def push(
        self, request: gr.Request, run: str | None, what: ExportKind, onto: MergeBase | Literal[""], *where: str
    ) -> list[str]:
        """Send what was exported to a repository of the hub, with the token given, else that of who is signed in, else
        HF_TOKEN; the page's token box is emptied."""
        repo, typed = where
        token = typed or visitor_of(self.services.access, request).token or os.environ.get("HF_TOKEN", "")
        found = self.services.runs.get(needed_run(run))
        folder = export_folder(found, what, base_for(found, what, onto or None))
        return [self._start("push", run, lambda halt: push(self.services.hub, folder, repo, token), models=False), ""]

    def report(self, run: str | None) -> gr.File:
        """Write the report beside the run; the files to download."""
        services, found = self.services, self.services.runs.get(needed_run(run))
        made = write_report(services.runs, services.votes, found, found.path / "report")
        return _files(list(made.values()))

    def poll(self, request: gr.Request, *where: Any) -> list[Any]:
        """What changed since the page was last drawn."""
        *_, seen = where
        if self._marks(where) == seen:
            return [self._job(request), *[gr.skip()] * 8]
        return self.redraw(request, *where)

    def redraw(self, request: gr.Request, *where: Any) -> list[Any]:
        """Everything, from what is stored."""
        run, split, which, page, prompts_page, _ = where
        if not self._is_there(run):
            return [self._job(request), *[gr.skip()] * 7, None]
        found = self.services.runs.get(run)
        since = self.services.runs.adapter_since(run)
        evaluation, prompts = (told_result(found, kind, since) for kind in ("evaluation", "prompts"))
        splits = list((evaluation or {}).get("splits", {}))
        shown = split if split in splits else next(iter(splits), None)
        return [
            self._job(request),
            show.evaluation(evaluation),
            renewed([(name, name) for name in splits], shown, split),
            show.rows_shown(evaluation, shown, which, _from_zero(page)),
            show.fidelity(read_result(found, "fidelity")),
            show.prompts_shown(prompts, _from_zero(prompts_page)),
            show.votes(self.services.votes.tally(run, since)),
            show.exported(read_result(found, "export")) if self._is_operator(request) else "",
            self._marks((run, shown, which, page, prompts_page)),
        ]

    def _start(self, kind: str, run: str | None, work: Work, *, models: bool = True) -> str:
        self.services.jobs.start(kind, needed_run(run), work, models=models)
        return show.job(self.services.jobs.last)

    def _is_there(self, run: str | None) -> bool:
        """Whether a run is chosen that nobody has deleted."""
        return run in self.services.runs.names()

    def _is_operator(self, request: gr.Request) -> bool:
        return visitor_of(self.services.access, request).role == "operator"

    def _job(self, request: gr.Request) -> str:
        """Where something was put and why it failed is for operators."""
        last = self.services.jobs.last
        return show.job(last) if self._is_operator(request) else show.job_alone(last)

    def _marks(self, where: Any) -> list[Any]:
        """Changes whenever something that is drawn does."""
        run, split, which, page, prompts_page, *_ = where
        if not self._is_there(run):
            return []
        folder = self.services.runs.path(run)
        drawn = [*sorted(folder.glob("results/*.json")), *folder.glob(f"adapter/{ADAPTER_WEIGHTS}")]
        stamps = [path.stat().st_mtime_ns for path in drawn]
        return [run, split, which, page, prompts_page, self.services.votes.count(run), *stamps]


def _files(paths: Sequence[Path]) -> gr.File:
    """Files to download; nothing where there are none."""
    return gr.File([offered(path) for path in paths] or None, visible=bool(paths))


def _from_zero(page: int | None) -> int:
    """A page's number, as it is typed, counted from 0; there is none before the first."""
    return max(page or 1, 1) - 1


def _limit(value: float | None) -> int | None:
    if value is None:
        return None
    if value < 1 or value != int(value):
        raise ConfigError("rows", f"{value:g} is not allowed; give a whole number >= 1, or nothing for all rows")
    return int(value)


def _draw() -> SimpleNamespace:
    parts = SimpleNamespace(seen=gr.State(None))
    with gr.Row():
        parts.run = listed(label="Finished run", elem_id="judge-run", scale=3, interactive=True)
        parts.names = listed(
            value=list(DEFAULT_COLUMNS),
            label="Columns (one to four)",
            multiselect=True,
            max_choices=grammar.MOST,
            allow_custom_value=True,
            elem_id="judge-columns",
            scale=4,
        )
        parts.limit = gr.Number(
            25,
            label="Rows of each split",
            info=f"empty: all; for merge fidelity {FIDELITY_ROWS}",
            precision=0,
            elem_id="judge-rows",
        )
    with gr.Row():
        parts.evaluate = gr.Button("Before and after", variant="primary", elem_id="evaluate")
        parts.faithful = gr.Button("Merge fidelity", elem_id="fidelity-start")
        parts.stop = gr.Button("Stop and keep", elem_id="stop-job")
    parts.job = gr.HTML(elem_id="job")
    with gr.Accordion("Before and after", open=True):
        _draw_evaluation(parts)
    with gr.Accordion("Merge fidelity", open=True):
        parts.fidelity = gr.HTML(show.fidelity(None), elem_id="fidelity")
    with gr.Accordion("Prompt sets", open=False):
        _draw_prompts(parts)
    with gr.Accordion("Blind votes", open=True):
        parts.votes = gr.HTML(show.votes(None), elem_id="votes")
    with gr.Accordion("Report", open=True), gr.Row():
        parts.report = gr.Button("Make report", elem_id="report")
        parts.files = gr.File(
            label="HTML, JSON and CSV",
            file_count="multiple",
            visible=False,
            interactive=False,
            elem_id="report-files",
        )
    with gr.Accordion("Merge and export", open=False):
        _draw_export(parts)
    return parts


def _draw_evaluation(parts: SimpleNamespace) -> None:
    parts.table = gr.HTML(show.evaluation(None), elem_id="evaluation")
    with gr.Row():
        parts.split = listed(label="Split", elem_id="split", interactive=True)
        parts.which = gr.Radio(_WHICH, value="all", label="Rows", elem_id="which", scale=2, min_width=320)
        parts.page = gr.Number(1, label="Page", precision=0, elem_id="rows-page")
    parts.rows = gr.HTML(show.rows_shown(None, None, "all", 0), elem_id="rows")


def _draw_prompts(parts: SimpleNamespace) -> None:
    with gr.Row():
        parts.prompts = gr.Textbox(label="Prompts, one a line", lines=4, elem_id="prompt-set", scale=3)
        parts.prompts_file = gr.File(
            label="or a file: .txt, .csv, .jsonl", file_types=[".txt", ".csv", ".jsonl"], elem_id="prompt-file"
        )
    with gr.Row():
        parts.ask = gr.Button("Ask all columns", elem_id="ask-all")
        parts.prompts_page = gr.Number(1, label="Page", precision=0, elem_id="prompts-page")
    parts.prompts_table = gr.HTML(show.prompts_shown(None, 0), elem_id="prompts")


def _draw_export(parts: SimpleNamespace) -> None:
    with gr.Row():
        parts.what = gr.Radio(list(get_args(ExportKind)), value="merged", label="What", elem_id="export-what")
        parts.onto = gr.Radio(
            [("what suits it", ""), *((onto, onto) for onto in get_args(MergeBase))],
            value="",
            label="Merged onto",
            info="What suits a QLoRA run: dequantized, the base it was trained on; original for 4 bit again, and LoRA",
            elem_id="export-onto",
        )
        parts.export = gr.Button("Export", elem_id="export")
    parts.exported = gr.HTML(elem_id="exported")
    with gr.Row():
        parts.repo = gr.Textbox(label="Hub repository", placeholder="you/your-model", elem_id="repo")
        parts.token = gr.Textbox(
            label="Hub token",
            type="password",
            info="used once, never kept; empty: that of who is signed in with Hugging Face, or HF_TOKEN",
            elem_id="token",
            html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        )
        parts.push = gr.Button("Push to the hub", elem_id="push")
