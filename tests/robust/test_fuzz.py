"""Whatever bytes a file holds, reading it ends in what it says or in a `DemoError`: parsers and run directories."""

from __future__ import annotations

import contextlib
import json
import string
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_demo import columns
from qlora_demo.benchmark.cases import QLORA
from qlora_demo.benchmark.config import BenchmarkConfig
from qlora_demo.benchmark.notes import notes, standing
from qlora_demo.benchmark.runner import Benchmarks, read_result_file
from qlora_demo.benchmark.tables import table
from qlora_demo.catalog import SHAPES
from qlora_demo.config import GenerationSettings, TrainConfig, column_mapping
from qlora_demo.errors import ConfigError, DataError, DemoError
from qlora_demo.gpu import Lease
from qlora_demo.jobs import read_result
from qlora_demo.knobs import field_names
from qlora_demo.records import RunState, TrainMetrics
from qlora_demo.results.history import read_note, side_by_side
from qlora_demo.results.promptsets import conversation, read_prompts
from qlora_demo.rows.files import iter_file
from qlora_demo.rows.formats import detect, out_of_order, to_messages
from qlora_demo.runs import RunStore, append_metrics
from qlora_demo.settings import Settings
from qlora_demo.ui import render, render_benchmark, run_panel
from tests.abandoned import abandoned

bounded = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = ["messages", "prompt", "completion", "text", "role", "content", "user", "assistant", "from", "value", "human"]
texts = st.text(max_size=30) | st.sampled_from([*WORDS, "\x00", "\ud800", "\u202e", "../../x", "=1+1", "<b>", "\ufeff"])
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 2**63])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def shaped(kind: type) -> st.SearchStrategy[bytes]:
    """A record's JSON with any of its fields replaced by anything."""
    names = [one.name for one in fields(kind)]
    whole = {"status": "finished", "choices": []} if kind is RunState else {"step": 1, "time": 1.0, "loss": 1.0}
    return st.dictionaries(st.sampled_from(names), values).map(lambda changed: as_json(whole | changed))


contents = st.binary(max_size=200) | values.map(as_json) | st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@bounded
@given(
    st.dictionaries(st.sampled_from(field_names(TrainConfig)), values).map(json.dumps) | texts | values.map(json.dumps)
)
def test_a_config_is_valid_or_named_as_wrong(text: str) -> None:
    for kind in (TrainConfig, GenerationSettings):
        try:
            config = kind.from_json(text, "config.json")
        except ConfigError as exc:
            assert "\n" not in str(exc)
        else:
            assert kind.from_json(config.model_dump_json(), "again") == config


@bounded
@given(texts, texts)
def test_columns_and_mappings_are_read_or_refused(left: str, right: str) -> None:
    with contextlib.suppress(ConfigError):
        assert columns.parse(f"{left}@{right}", "run").source
    with contextlib.suppress(ConfigError):
        columns.parse(f"merged:{left}@{right}", "run")
    with contextlib.suppress(ConfigError):
        assert all(column_mapping(f"{left}={right},prompt={right}").values())


@bounded
@given(st.dictionaries(texts, values, max_size=4), st.dictionaries(st.sampled_from(WORDS[:4]), texts, max_size=2))
def test_a_row_becomes_text_or_is_refused_with_its_place(row: dict[str, Any], mapping: dict[str, str]) -> None:
    try:
        found = to_messages(row, mapping, "rows.jsonl, line 1")
    except DataError as exc:
        assert str(exc).startswith("rows.jsonl, line 1")
        return
    assert set(found) in ({"messages"}, {"text"})
    json.dumps(found, ensure_ascii=False).encode()
    if "messages" in found:
        assert isinstance(out_of_order(found["messages"]), bool)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@bounded
@given(contents | st.lists(values.map(as_json), max_size=4).map(b"\n".join))
def test_a_file_of_rows_is_read_or_refused_by_name(suffix: str, content: bytes) -> None:
    with scratch() as folder:
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        try:
            for found in iter_file(path):
                assert found.where.startswith(str(path))
                detect(found.row)
        except DataError as exc:
            assert str(path) in str(exc)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
@bounded
@given(contents | st.lists(values.map(as_json), max_size=4).map(b"\n".join))
def test_a_set_of_prompts_is_read_or_refused_by_name(suffix: str, content: bytes) -> None:
    with scratch() as folder:
        path = folder / f"prompts{suffix}"
        path.write_bytes(content)
        try:
            prompts = read_prompts(path)
        except DataError as exc:
            assert path.name in str(exc)
        else:
            asked = [turn["content"] for prompt in prompts for turn in conversation("", prompt)]
            assert prompts and all(text.strip() for text in asked)
            "".join(asked).encode()


def show(store: RunStore, name: str) -> None:
    """Everything that the page draws of a run that can be read."""
    run = store.get(name)
    assert run in store.all()
    metrics, alive = store.metrics(name), run.alive
    assert not alive and store.active() is None
    shown = [render.run_progress(run, metrics), render.run_about(run, store.versions(name)), store.log_tail(name)]
    shown += [render.runs_table([run]).to_json(), str(side_by_side(store, [run])), str(read_note(run))]
    shown += [str(read_result(run, "evaluation")), str(run.resumable_from)]
    if len(metrics) > 1:  # one line is drawn in every example: drawing takes longest
        shown += run_panel._draw_plots(metrics)
    assert all(isinstance(part, str) for part in shown)
    store.waiting("checking", "queued")
    store.heldout(name)


FILES: dict[str, st.SearchStrategy[bytes]] = {
    "state.json": contents | shaped(RunState),
    "metrics.jsonl": contents | st.lists(shaped(TrainMetrics), max_size=4).map(lambda lines: b"\n".join([*lines, b""])),
    "config.json": contents,
    "note.json": contents | st.fixed_dictionaries({"text": values, "tags": values}).map(as_json),
    "versions.json": contents,
    "train.log": contents,
    "heldout/test.jsonl": contents | st.fixed_dictionaries({"messages": values}).map(as_json),
    "results/evaluation.json": contents,
}


@pytest.mark.parametrize("name", FILES)
@settings(bounded, max_examples=30)
@given(st.data())
def test_a_run_directory_is_shown_or_named_as_damaged(name: str, data: st.DataObject) -> None:
    with scratch() as folder:
        store = RunStore(folder / "runs")
        other, run = store.create(TrainConfig()), store.create(TrainConfig())
        append_metrics(run.path, TrainMetrics(1, 1.0, loss=1.0, step_seconds=0.5, tokens=10))
        path = run.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.draw(FILES[name]))
        try:
            show(store, run.id)
        except DemoError as exc:
            assert run.id in str(exc) and "\n" not in str(exc)
        assert store.get(other.id) == other and other in store.all()
        store.delete(run.id)


FIGURES = ["prompt_tokens", "batch", "ttft_median_seconds", "tpot_median_seconds", "tokens_per_second", "peak_bytes"]
FIGURES += ["longest_row", "largest_batch", "planned_longest_row", "planned_largest_batch", "step_median_seconds"]
FIGURES += ["read_bytes", "bandwidth_bytes_per_second"]
FIGURES += [f"{phase}_peak_bytes" for phase in ("load", "forward", "backward", "optimizer")]
ROW: dict[str, Any] = {
    "case": "r 8, mlp",
    "fits": True,
    "capped": ["longest_row"],
    "note": "",
    "checkpointing": False,
    "kernels": "fused",
    "fp16": False,
    "shape": asdict(SHAPES["tiny"]),
    "decode": "eager",
    "score": {"exact_match": 0.5},
}
RESULT: dict[str, Any] = {
    **{"id": "one", "state": "stopped", "cases": 2, "error": "", "method": "so", "started_at": 1.0, "ended_at": 2.0},
    **{"machine": {"device": "a card", "cuda": "12", "driver": "1"}, "progress": {"text": "", "fraction": 0.5}},
    **{"again": {"case": ROW["case"], "step_median_seconds": 3}},
    **{"options": BenchmarkConfig().model_dump(), "config": TrainConfig().model_dump()},
}
NOTHING: st.SearchStrategy[dict[str, Any]] = st.just({})
CHANGES = NOTHING | st.dictionaries(st.sampled_from([*RESULT, "kind", "rows"]), values, max_size=2)
INNER: dict[str, st.SearchStrategy[Any]] = {
    "row": st.dictionaries(st.sampled_from([*ROW, *FIGURES, "error"]), values, max_size=2),
    "score": NOTHING | st.dictionaries(st.sampled_from(["exact_match", "rows"]), values, max_size=2),
    "shape": NOTHING | st.dictionaries(st.sampled_from(list(ROW["shape"])), values, max_size=1),
    "again": NOTHING | st.dictionaries(st.sampled_from(["case", "step_median_seconds"]), values, max_size=1),
    "config": NOTHING
    | st.dictionaries(
        st.sampled_from(["model", "r", "max_length", "target_modules", "optim", "packing"]), values, max_size=1
    ),
    "options": NOTHING | st.dictionaries(st.sampled_from(["run", "batch_sizes", "extra"]), values, max_size=1),
    "left_out": NOTHING | st.sets(st.sampled_from([*RESULT, "rows"]), max_size=2),
}


@st.composite
def benchmark_results(draw: st.DrawFn) -> bytes:
    """A benchmark's result with some of its fields, or of its rows', replaced by anything or left out."""
    inner = {name: draw(made) for name, made in INNER.items()}
    kind = draw(st.sampled_from(["training", "rank", "frontier", "inference"]))
    case = QLORA if kind == "training" else ROW["case"]
    row: dict[str, Any] = ROW | dict.fromkeys(FIGURES, 2) | {"case": case, "shape": ROW["shape"] | inner["shape"]}
    row["score"] = ROW["score"] | inner["score"]
    whole: dict[str, Any] = RESULT | {"kind": kind, "rows": [row | inner["row"]]}
    whole |= {name: whole[name] | inner[name] for name in ("config", "options", "again")}
    whole |= draw(CHANGES)
    return as_json({name: value for name, value in whole.items() if name not in inner["left_out"]})


@settings(bounded, max_examples=100)
@given(contents | benchmark_results())
def test_a_benchmark_s_result_is_shown_or_named_as_damaged(content: bytes) -> None:
    with scratch() as folder:
        store = Benchmarks(Settings(folder), Lease(folder))
        name = abandoned(store, BenchmarkConfig(), TrainConfig(model="shape:tiny"))
        path = store.path(name) / "result.json"
        path.write_bytes(content)
        try:
            found = read_result_file(path)
            shown = f"{render_benchmark.compared(found, found)} {table(found)} {table(found, short=True)}"
            shown += notes(found) + standing(found)
            shown += render_benchmark.compared(found, RESULT | {name: found[name] for name in ("kind", "rows")})
            own = store.get(name)
        except DemoError as exc:
            assert "result.json" in str(exc) and "\n" not in str(exc)
            assert store.all() == []
        else:
            shown += render_benchmark.label(own) + render_benchmark.progress(own) + render_benchmark.result_shown(own)
            shown.encode()


ODD_PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link out of the run": lambda path: path.symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("place", ODD_PLACES)
@pytest.mark.parametrize("name", ["state.json", "metrics.jsonl", "config.json", "note.json", "train.log", "lock"])
def test_what_stands_in_a_file_s_place_is_not_followed(tmp_path: Path, name: str, place: str) -> None:
    store = RunStore(tmp_path / "runs")
    run = store.create(TrainConfig())
    (run.path / name).unlink(missing_ok=True)
    ODD_PLACES[place](run.path / name)
    shown = ""
    with contextlib.suppress(DemoError):
        shown = f"{store.get(run.id)} {store.metrics(run.id)}"
    with contextlib.suppress(DemoError):
        shown += f"{store.log_tail(run.id)} {read_note(run)}"
    assert "root:" not in shown
    assert store.active() is None and store.waiting("checking", "queued") == []
    store.delete(run.id)
    assert list(store.root.iterdir()) == []


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for name in ("x" * 10_000, "\x00", "\ud800", *string.punctuation):
        with pytest.raises(DemoError, match="no such run"):
            store.get(name)
