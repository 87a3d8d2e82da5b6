"""The commands that ask a run's models: `compare`, `evaluate`, `fidelity`; and its `report`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..catalog import DEFAULT_COLUMNS, FIDELITY_ROWS
from ..columns import parse_all
from ..config import GenerationSettings
from ..errors import RequestError, WorkError
from ..jobs import at_work, save_result
from ..records import AnswerRequest
from ..results.answers import kept
from ..results.promptsets import conversation, read_prompts
from ..results.reporting import write_report
from ..results.verdicts import told_apart
from ..services import Services
from ..system.halt import Halt
from .arguments import Parser, add_command, add_knobs, names, out_path, positive, with_given
from .console import last, print_result

_DEFAULT_COLUMNS = ",".join(DEFAULT_COLUMNS)
_VARIANTS_HELP = f"columns, as RECIPE[:original|:dequantized][@RUN]; default: {_DEFAULT_COLUMNS}"


def add(commands: Any) -> None:
    """Their parsers."""
    _add_compare(add_command(commands, "compare", compare, print_result))
    evaluation = add_command(commands, "evaluate", evaluate, print_result)
    evaluation.add_argument("run")
    evaluation.add_argument("--variants", default=_DEFAULT_COLUMNS, help=_VARIANTS_HELP)
    evaluation.add_argument("--limit", type=positive, help="at most this many rows of each split; default: all")
    faithful = add_command(commands, "fidelity", fidelity, print_result)
    faithful.add_argument("run")
    faithful.add_argument("--limit", type=positive, help=f"at most this many rows; default: {FIDELITY_ROWS}")
    reporting = add_command(commands, "report", report, print_result)
    reporting.add_argument("run")
    reporting.add_argument("--out", help="folder to write to; default: inside the run's folder")


def _add_compare(parser: Parser) -> None:
    parser.add_argument("run")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", help="file of prompts: .txt (one per line), .csv, .jsonl")
    parser.add_argument("--one-after-the-other", action="store_true", help="default: columns take turns")
    parser.add_argument("--system", help="system prompt; default: the one the run was trained with")
    parser.add_argument("--variants", default=_DEFAULT_COLUMNS, help=_VARIANTS_HELP)
    add_knobs(parser, GenerationSettings)


def compare(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Send the same prompts to every column."""
    settings = with_given(GenerationSettings(), args)
    prompts = args.prompt + (read_prompts(Path(args.prompts)) if args.prompts else [])
    if not prompts:
        raise RequestError("prompt: none given; use --prompt TEXT or --prompts FILE")
    system = _system_prompt(services, args.run) if args.system is None else args.system
    columns = parse_all(names(args.variants), args.run)
    results = []
    for prompt in prompts:
        turns = dict.fromkeys([column.name for column in columns], conversation(system, prompt))
        request = AnswerRequest(
            columns, turns, settings, "one after the other" if args.one_after_the_other else "in turn"
        )
        *_, answers = services.engine().answer(request, Halt())
        results.append({"prompt": prompt, "answers": {answer.column: kept(answer) for answer in answers}})
    _require_answer([answer for result in results for answer in result["answers"].values()])
    return {"run": args.run, "system": system, "settings": settings.model_dump(), "results": results}


def _system_prompt(services: Services, run: str) -> str:
    rows = next(iter(services.runs.heldout(run).values()), [])
    return next((m["content"] for row in rows[:1] for m in row if m["role"] == "system"), "")


def _require_answer(answers: Sequence[dict[str, Any]]) -> None:
    """Raises the first error where nothing was answered; `WorkError` where memory was short."""
    errors = [answer["error"] for answer in answers]
    if all(errors):
        raise (WorkError if errors[0].startswith("device: out of memory") else RequestError)(errors[0])


def evaluate(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Measure columns on the run's held-out rows."""
    columns = parse_all(names(args.variants), args.run)
    with at_work(run := services.runs.get(args.run)):
        result = last(services.engine().evaluate(args.run, columns, args.limit, Halt()))
        save_result(run, "evaluation", result)
    found = {name: result[name] for name in ("variants", "splits", "left_out", "weights")}
    return {"run": args.run, **found, "verdicts": told_apart(result)}


def fidelity(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Compare every merge with the adapter model, on the run's held-out rows."""
    with at_work(run := services.runs.get(args.run)):
        result = last(services.engine().fidelity(args.run, args.limit, Halt()))
        save_result(run, "fidelity", result)
    return {"run": args.run, **result}


def report(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Write everything known about a run as one HTML file, as JSON and as CSV."""
    run = services.runs.get(args.run)
    made = write_report(services.runs, services.votes, run, out_path(args.out) or run.path / "report")
    return {"run": run.id, **{kind: str(path) for kind, path in made.items()}}
