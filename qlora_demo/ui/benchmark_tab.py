"""The Benchmark tab: what is measured and how, what is being measured, the results, and two of them side by side.

A benchmark is a process with a directory: closing the tab leaves it running, and the page follows its files.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gradio as gr

from ..benchmark.cases import READ
from ..benchmark.config import FULL, BenchmarkConfig, BenchmarkKind
from ..benchmark.runner import RESULT, read_result_file
from ..config import TrainConfig
from ..errors import ConfigError, RequestError
from ..gpu import device_info
from ..knobs import knob
from ..presets import ARTICLE, COMPARED
from ..services import Services
from ..visitors.access import Role
from . import controls, deletion, render
from . import render_benchmark as show
from .gate import Gate, visitor_of
from .listed import listed, renewed
from .offered import offered

_POLL_SECONDS = 2
_GROUPS: dict[BenchmarkKind, str] = {
    "training": "Training",
    "frontier": "Frontier",
    "rank": "Rank",
    "inference": "Inference",
}
_SETTINGS = (
    "model",
    "method",
    "r",
    "target_modules",
    "max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "dataset",
    "max_steps",
    "score_rows",
)
_PLACE = "benchmark-"
_NO_RUN = "none: a random adapter for the model below"


def build(services: Services, page: gr.Blocks, gate: Gate) -> None:
    """Draw the tab and wire it."""
    parts = _draw()
    bench = Bench(services, list(parts.options), list(parts.settings), parts.base)
    chosen = [parts.kind, *parts.options.values(), *parts.settings.values()]
    drawn = [parts.which, parts.other, parts.progress, parts.result, parts.file, parts.seen]
    read = [parts.which, parts.seen]
    shown = [*parts.groups, parts.compared_settings, *parts.settings.values()]
    kind_and_run = [parts.kind, parts.options["run"]]
    gate.on([parts.kind.change, parts.options["run"].change], _form_of, kind_and_run, shown, needs="visitor")
    gate.on([page.load, parts.kind.change], bench.runs, None, parts.options["run"], needs="visitor")
    gate.on(parts.start.click, bench.start, chosen, drawn, needs="operator")
    gate.on(parts.stop.click, bench.stop, parts.which, None, needs="operator")
    deletion.wire(parts.deletion, parts.which, bench.delete, drawn, gate)
    gate.on(
        parts.full.click, lambda: _filled(parts.options, FULL), None, list(parts.options.values()), needs="operator"
    )
    article = list(parts.settings.values())
    gate.on(parts.article.click, lambda: controls.fill(ARTICLE, _SETTINGS), None, article, needs="operator")

    def look(which: str | None, seen: Any, request: gr.Request) -> list[Any]:
        return bench.look(which, seen, visitor_of(services.access, request).role)

    gate.on(parts.which.input, look, read, drawn, needs="visitor")
    gate.on(gr.Timer(_POLL_SECONDS).tick, look, read, drawn, needs="visitor", concurrency_limit=None)
    gate.on(page.load, look, read, drawn, needs="visitor")
    pair = [parts.which, parts.other, parts.sent]
    gate.on(parts.compare.click, bench.compare, pair, parts.compared, needs="operator")


class Bench:
    """What the tab's buttons do; all state is in the benchmarks' directories."""

    def __init__(self, services: Services, options: list[str], settings: list[str], base: TrainConfig) -> None:
        self.services = services
        self._options = options
        self._settings = settings
        self._base = base

    def start(self, kind: BenchmarkKind, *values: Any) -> list[Any]:
        """Measure what the form says, in a process of its own."""
        shown = dict(zip(self._options, values[: len(self._options)], strict=True))
        asked = [name for name in self._options if _shows(kind, controls.group_of(BenchmarkConfig, name))]
        options = controls.read(BenchmarkConfig, ["kind", *asked], [kind, *(shown[name] for name in asked)])
        given = dict(zip(self._settings, values[len(self._options) :], strict=True))
        config = self._base.changed(**{name: given[name] for name in given if name in _read(kind, options.run)})
        self.services.benchmarks.check(options, config)
        self.services.jobs.require_models()
        if self.services.runs.active() is None and self.services.engine.release():
            gr.Info("The chat's models were freed to make room; the next prompt loads them again.")
        return self.look(self.services.benchmarks.start(options, config), None)

    def runs(self) -> dict[str, Any]:
        """What can be chosen as the run whose columns are timed; others can be typed."""
        ready = [run for run in self.services.runs.all() if run.has_adapter and run.state.ended]
        return gr.update(choices=[(_NO_RUN, ""), *((render.run_label(run), run.id) for run in ready)])

    def stop(self, which: str | None) -> None:
        """End what is measured; its rows so far stay."""
        self.services.benchmarks.stop(_named(which))
        gr.Info("Stopping; what was measured so far is kept.")

    def delete(self, which: str) -> list[Any]:
        """Remove a result."""
        self.services.benchmarks.delete(which)
        return self.look(None, None)

    def look(self, which: str | None, seen: Any, role: Role = "operator") -> list[Any]:
        """The chosen benchmark, or the newest, where anything changed since the page was last drawn; its file, which
        may name others of the home, for operators."""
        names = self.services.benchmarks.names()
        chosen = which if which in names else (names[0] if names else None)
        marks = [chosen, *([name, *self._stamp(name)] for name in names)]
        if seen == marks:
            return [gr.skip()] * 6
        known = {one["id"]: one for one in self.services.benchmarks.all()}
        result = known.get(chosen)
        choices = [(show.label(known[name]) if name in known else f"{name} · cannot be read", name) for name in names]
        return [
            renewed(choices, chosen, which),
            gr.update(choices=choices),
            show.unreadable(chosen) if chosen and not result else show.progress(result),
            show.result_shown(result),
            gr.DownloadButton(value=self._file(chosen) if role == "operator" else None),
            marks,
        ]

    def compare(self, which: str | None, other: str | None, sent: list[str] | None) -> str:
        """The chosen result beside another one or a file that was sent, or two such files."""
        files = [read_result_file(Path(path)) for path in sent or ()]
        if len(files) > 2:
            raise ConfigError("result", f"{len(files)} files were sent; give one or two")
        if len(files) == 2:
            return show.compared(*files)
        first = self.services.benchmarks.get(_named(which))
        return show.compared(first, files[0] if files else self.services.benchmarks.get(_named(other)))

    def _file(self, name: str | None) -> str | None:
        """What can be downloaded of a benchmark; nothing where its process was killed, or somebody deleted it."""
        path = self.services.benchmarks.root / (name or "") / RESULT
        return offered(path) if path.is_file() else None

    def _stamp(self, name: str) -> list[Any]:
        folder = self.services.benchmarks.root / name
        try:
            return [str((folder / RESULT).stat().st_mtime_ns), self.services.benchmarks.get(name)["state"]]
        except (OSError, RequestError):
            return []


def _named(which: str | None) -> str:
    if not which:
        raise ConfigError("benchmark", "none is chosen; measure something first")
    return which


def _form_of(kind: BenchmarkKind | None, run: str | None) -> list[Any]:
    """What this kind has a use for: groups of options, the training settings as a whole, and each."""
    read = _read(kind, run)
    groups = [_shows(kind, group) for group in _GROUPS.values()]
    return [gr.update(visible=shown) for shown in (*groups, bool(read), *(name in read for name in _SETTINGS))]


def _read(kind: BenchmarkKind | None, run: str | None) -> tuple[str, ...]:
    return () if kind is None or (kind == "inference" and run) else READ[kind]


def _shows(kind: BenchmarkKind | None, group: str) -> bool:
    """Whether a group of options is of this kind; ranks are timed as training is."""
    return (kind is not None and _GROUPS[kind] == group) or (kind == "rank" and group == "Training")


def _filled(options: controls.Controls, values: dict[str, Any]) -> list[Any]:
    return [values.get(name, gr.skip()) for name in options]


def _draw() -> SimpleNamespace:
    parts = SimpleNamespace(seen=gr.State(None), base=COMPARED[device_info().kind])
    with gr.Row():
        with gr.Column(scale=2, min_width=340):
            _draw_form(parts)
        with gr.Column(scale=3, min_width=360):
            with gr.Row():
                parts.which = listed(label="Result", elem_id="benchmark", scale=4, interactive=True)
                parts.stop = gr.Button("Stop and keep", elem_id="benchmark-stop", scale=1, min_width=120)
            parts.progress = gr.HTML(show.progress(None), elem_id="benchmark-progress", min_height=70)
            parts.result = gr.HTML(elem_id="benchmark-result")
            with gr.Row():
                parts.file = gr.DownloadButton("Download JSON", elem_id="benchmark-file", size="sm")
                parts.deletion = deletion.draw("Delete this result", "benchmark-delete")
            with gr.Accordion("Compare with another result", open=False):
                _draw_comparison(parts)
    return parts


def _draw_form(parts: SimpleNamespace) -> None:
    kinds = list(get_args(BenchmarkKind))
    info = knob(BenchmarkConfig, "kind").description
    parts.kind = gr.Radio(kinds, value=kinds[0], label="What is measured", info=info, elem_id="benchmark-kind")
    with gr.Row():
        parts.start = gr.Button("Measure", variant="primary", elem_id="benchmark-start", min_width=120)
        parts.full = gr.Button("Full range (slower)", elem_id="benchmark-full", size="sm", min_width=90)
        parts.article = gr.Button("Article's settings (7B)", elem_id="benchmark-article", size="sm", min_width=90)
    parts.options, parts.groups = {}, []
    for group in _GROUPS.values():
        with gr.Group(visible=group == "Training") as box:
            parts.options |= controls.draw(BenchmarkConfig, group)
        parts.groups.append(box)
    with gr.Accordion("Training settings", open=True) as parts.compared_settings, gr.Row():
        parts.settings = controls.draw_some(parts.base, _SETTINGS, _PLACE)
    for name, part in parts.settings.items():
        part.visible = name in READ["training"]


def _draw_comparison(parts: SimpleNamespace) -> None:
    with gr.Row():
        parts.other = listed(label="Another result", elem_id="benchmark-other", interactive=True)
        parts.sent = gr.File(
            label="or one or two result files", file_count="multiple", file_types=[".json"], elem_id="benchmark-sent"
        )
        parts.compare = gr.Button("Compare", elem_id="benchmark-compare", min_width=90)
    parts.compared = gr.HTML(elem_id="benchmark-compared")
