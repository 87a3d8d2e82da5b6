"""One run from its first step to its judgement, as the page would do it: what it took, what it scored, how it answers.

    python -m benchmarks.whole_run [--rows 50] [--out FILE] [--config FILE] [training fields ...]

Method: the run is trained in a process of its own with the app's own launcher; what it took is what the run recorded.
The chat's columns are evaluated on the run's held-out rows.  Then the first of these are asked of all columns in turn,
greedily, once no compiled step is being built any more, for which three minutes are waited at most; a column's figures
are medians over these answers.  At last every merge is compared with the adapter model on held-out rows, and the merged
model is saved, loaded again and compared.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from qlora_demo.benchmark.runner import write_result_file
from qlora_demo.catalog import DEFAULT_COLUMNS
from qlora_demo.columns import parse_all
from qlora_demo.commands.arguments import Parser, add_config, positive, train_config
from qlora_demo.commands.console import follow, last
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings, TrainConfig
from qlora_demo.ml.machine import versions
from qlora_demo.records import AnswerRequest, Column, ExportRequest
from qlora_demo.results.answers import kept
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt

_BUILDING = "is being built"
_WAIT_SECONDS, _LOOK_SECONDS = 180.0, 10.0
"""Steps are built while nothing is asked, so it is asked seldom."""
_FIGURES = ("ttft_seconds", "tpot_median_seconds", "tokens_per_second", "bandwidth_share", "model_bytes")


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    result: dict[str, Any] = {}
    with contextlib.closing(build_services(Settings.from_environment())) as services:
        for name, part in parts(services, train_config(args), args.rows, args.answers):
            result[name] = part
            if args.out:
                write_result_file(args.out, result)
    print(json.dumps(result, indent=2))


def arguments() -> Parser:
    """The training fields, and how much is judged."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=positive, help="held-out rows of each split that are judged; default: all")
    parser.add_argument("--answers", type=positive, default=5, help="answers whose times are taken (default 5)")
    parser.add_argument("--out", type=Path)
    return add_config(parser)


def parts(services: Services, config: TrainConfig, rows: int | None, answers: int) -> Iterator[tuple[str, Any]]:
    """The document's parts, each as soon as it is there."""
    yield "method", " ".join(__doc__.split("Method: ")[1].split())
    yield "machine", versions()
    yield "settings", config.model_dump() | {"rows": rows, "answers": answers}
    run = follow(services, services.launcher.start(config))
    if run.state.status != "finished":
        raise SystemExit(f"run {run.id}: {run.state.status}: {run.state.error}")
    yield "training", run.state.summary
    yield "choices", {choice.what: choice.value for choice in run.state.choices}
    yield from judged(services, run, rows, answers)


def judged(services: Services, run: Run, rows: int | None, answers: int) -> Iterator[tuple[str, Any]]:
    """The parts that come after training."""
    columns, engine = parse_all(list(DEFAULT_COLUMNS), run.id), services.engine()
    yield "splits", last(engine.evaluate(run.id, columns, rows, Halt()))["splits"]
    yield "columns", {name: figures(said) for name, said in asked(services, run, columns, answers).items()}
    yield "merges", last(engine.fidelity(run.id, rows, Halt()))["merges"]
    exported = last(engine.export(ExportRequest(run.id, "merged"), Halt()))
    yield "export", {name: exported[name] for name in ("onto", "verified", "fidelity")}


def asked(services: Services, run: Run, columns: tuple[Column, ...], count: int) -> dict[str, list[dict[str, Any]]]:
    """Each column's answers to the first held-out rows, once nothing is being built."""
    prompts = [tuple(row[:-1]) for row in next(iter(services.runs.heldout(run.id).values()))[:count]]
    until = time.monotonic() + _WAIT_SECONDS
    while any(_BUILDING in one["decode"] for one in answer(services, columns, prompts[0])) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    said = [answer(services, columns, prompt) for prompt in prompts]
    return {column.name: [row[at] for row in said] for at, column in enumerate(columns)}


def answer(services: Services, columns: tuple[Column, ...], prompt: Sequence[Any]) -> list[dict[str, Any]]:
    """One prompt to all columns, in turn."""
    request = AnswerRequest(columns, {column.name: tuple(prompt) for column in columns}, GenerationSettings())
    *_, answers = services.engine().answer(request, Halt())
    return [kept(one) for one in answers]


def figures(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """A column's medians, how its answers were decoded, and its texts; raises SystemExit with a column's error."""
    if errors := [one["error"] for one in answers if one["error"]]:
        raise SystemExit(errors[0])
    found = {name: [one[name] for one in answers if one[name] is not None] for name in _FIGURES}
    return {
        **{name: median(values) if values else None for name, values in found.items()},
        "decode": sorted({one["decode"] for one in answers}),
        "texts": [one["text"] for one in answers],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
