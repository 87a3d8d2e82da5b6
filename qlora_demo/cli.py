"""The app's services on the command line, without a browser.

    python -m qlora_demo COMMAND [--json]

With --json, stdout is exactly one JSON document; everything else goes to stderr.
Exit 0 done; 2 the request is wrong; 1 it failed: then one line on stderr says why.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from . import __version__
from .answers import kept
from .arguments import (
    Parser,
    add_config,
    add_knobs,
    memory_size,
    names,
    out_path,
    positive,
    train_config,
    with_given,
)
from .catalog import DEFAULT_COLUMNS, FIDELITY_ROWS, SMOLLM2
from .cli_benchmark import add_arguments, benchmark, print_benchmark
from .columns import parse_all
from .compose import build_services, serve
from .config import GenerationSettings
from .console import follow, last, print_checks, print_result, report_progress, tell
from .doctor import Check, attempt, examine
from .errors import ConfigError, DemoError, RequestError, RunError, WorkError
from .exporting import base_for, export_folder, push
from .halt import Halt
from .hub import is_repo_id, require_token
from .jobs import at_work, save_result
from .planning import plan_training
from .promptsets import conversation, read_prompts
from .records import AnswerRequest, ExportKind, ExportRequest, MergeBase
from .reporting import write_report
from .runs import Run
from .services import Services
from .settings import Settings

Command = Callable[[Services, argparse.Namespace], Any]
_DEFAULT_COLUMNS = ",".join(DEFAULT_COLUMNS)
_VARIANTS_HELP = f"columns, as RECIPE[:original|:dequantized][@RUN]; default: {_DEFAULT_COLUMNS}"
_ONTO_HELP = "base to merge onto; default: the one that suits what is made"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        args = _parser().parse_args(argv)
        with contextlib.redirect_stdout(sys.stderr):
            result = _run(args)
        tell(result, None if args.json else args.show)
    except DemoError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    return 1 if args.command is doctor and not result["ok"] else 0


def _run(args: argparse.Namespace) -> Any:
    if args.command is doctor:
        return doctor()
    with contextlib.closing(build_services(Settings.from_environment())) as services:
        return args.command(services, args)


def fetch(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Fetch the bundled model into its folder."""
    model = SMOLLM2
    path = services.fetch(model, report_progress)
    return {"model": model.name, "path": str(path), "sha256": model.sha256}


def train(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Start a run and follow it to its end; or only create its folder, for processes that are started by hand."""
    if args.prepare:
        run = services.runs.create(train_config(args))
        return {"run": run.id, "state": run.state.status, "path": str(run.path)}
    run = _followed(services, services.launcher.start(train_config(args), args.processes))
    if run.state.refused:
        services.runs.delete(run.id)
    return _outcome(run)


def _followed(services: Services, run: Run) -> Run:
    """Follow a run to its end, as which it is returned; an interrupt asks it to stop and save."""
    print(f"run {run.id}: log in {run.path / 'train.log'}", file=sys.stderr)
    try:
        return follow(services, run)
    except KeyboardInterrupt:
        with contextlib.suppress(RunError):  # it ended meanwhile
            services.runs.request_stop(run.id)
        return follow(services, run)


def _outcome(run: Run) -> dict[str, Any]:
    if run.state.refused:
        raise RequestError(run.state.error)
    if run.state.status == "failed":
        raise WorkError(f"run {run.id} failed: {run.state.error}; the whole log is {run.path / 'train.log'}")
    return {"run": run.id, "state": run.state.status, **run.state.summary}


def plan(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """The memory a training run would take, itemised; no weights are needed."""
    found = plan_training(services.settings, train_config(args), args.gpu_memory)
    chosen = found.chosen
    return {
        "total_bytes": chosen.total_bytes,
        "device_bytes": found.device_bytes,
        "fits": found.fits,
        "gradient_checkpointing": chosen.checkpointing,
        "kernels": chosen.kernels,
        "items": [asdict(item) for item in chosen.items],
        "trainable_parameters": chosen.trainable_parameters,
        "all_parameters": chosen.all_parameters,
        "largest_batch": found.largest_batch,
        "longest_row": found.longest_row,
        "fewer_passes": found.fewer_passes and found.fewer_passes.told(),
        "with_checkpointing_bytes": found.checkpointed_bytes,
        "others": {other.way: other.total_bytes for other in found.others},
    }


def preflight(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """What training would see of a data set: counts, lengths, problems row by row; exit 2 if it must be fixed."""
    result = last(services.engine().preflight(train_config(args), Halt()))
    if result["fatal"]:
        raise RequestError(f"dataset: {result['fatal']}")
    return result


def runs(services: Services, args: argparse.Namespace) -> Any:
    """List, show, stop, resume or delete runs."""
    if args.action == "list":
        return [{"run": run.id, "state": run.state.status, **run.state.summary} for run in services.runs.all()]
    if not args.run:
        raise RequestError(f"RUN: missing; `runs {args.action} RUN` takes an id from `runs list`")
    if args.action == "stop":
        services.runs.request_stop(args.run)
        return {"run": args.run, "state": "stopping"}
    if args.action == "resume":
        return _outcome(_followed(services, services.launcher.resume(args.run)))
    if args.action == "delete":
        services.runs.delete(args.run)
        return {"run": args.run, "state": "deleted"}
    run = services.runs.get(args.run)
    return {"run": run.id, "path": str(run.path), "config": run.config.model_dump(), **asdict(run.state)}


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


def merge(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Save the merged 16-bit model."""
    with at_work(services.runs.get(args.run)):
        request = ExportRequest(args.run, "merged", args.onto, out_path(args.out))
        return last(services.engine().export(request, Halt()))


def export(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Save an adapter or a merged model with its model card, and push it to a hub repository where one is named."""
    token = _token_for(args.push) if args.push else ""
    with at_work(run := services.runs.get(args.run)):
        result = _exported_before(services, run, args) if args.push and not args.out else None
        if result is None:
            request = ExportRequest(args.run, args.what, args.onto, out_path(args.out))
            result = last(services.engine().export(request, Halt()))
        if args.push:
            result |= last(push(services.hub, Path(result["path"]), args.push, token))
    return result


def _token_for(repo: str) -> str:
    """The token to push with; what would keep the hub from being asked is refused before the work."""
    if not is_repo_id(repo):
        raise ConfigError("push", f"{repo!r} is not a repository name; write owner/name, as in you/your-model")
    if not (token := os.environ.get("HF_TOKEN", "")):
        raise ConfigError("HF_TOKEN", "is not set; set it to an access token that may write")
    require_token("HF_TOKEN", token)
    return token


def _exported_before(services: Services, run: Run, args: argparse.Namespace) -> dict[str, Any] | None:
    """What stands in the run's folder already, as after a push that failed; None where there is none."""
    folder = export_folder(run, args.what, base_for(run, args.what, args.onto))
    if not folder.is_dir():
        return None
    print(f"{folder} exists already and is pushed as it is", file=sys.stderr)
    return {"path": str(folder), "what": args.what}


def report(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Write everything known about a run as one HTML file, as JSON and as CSV."""
    run = services.runs.get(args.run)
    made = write_report(services, run, out_path(args.out) or run.path / "report")
    return {"run": run.id, **{kind: str(path) for kind, path in made.items()}}


def evaluate(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Measure columns on the run's held-out rows."""
    columns = parse_all(names(args.variants), args.run)
    with at_work(run := services.runs.get(args.run)):
        result = last(services.engine().evaluate(args.run, columns, args.limit, Halt()))
        save_result(run, "evaluation", result)
    return {"run": args.run, **{name: result[name] for name in ("variants", "splits", "left_out")}}


def fidelity(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Compare every merge with the adapter model, on the run's held-out rows."""
    with at_work(run := services.runs.get(args.run)):
        result = last(services.engine().fidelity(args.run, args.limit, Halt()))
        save_result(run, "fidelity", result)
    return {"run": args.run, **result}


def doctor() -> dict[str, Any]:
    """Check that this machine has what the app needs; exit 1 if something needed is missing."""
    checks = list(examine())
    if any(check.name == "home" and check.ok for check in checks):
        checks += _model_checks(Settings.from_environment())
    ok = all(check.ok or not check.needed for check in checks)
    return {"ok": ok, "checks": [asdict(check) for check in checks]}


def _model_checks(settings: Settings) -> list[Check]:
    """What torch finds, or that it cannot be imported."""

    def look() -> str:
        from .ml.doctor import examine as examine_models

        found.extend(examine_models(settings, SMOLLM2))
        return "import"

    found: list[Check] = []
    libraries = attempt("libraries", "run pip install -r requirements.txt in a fresh environment", look)
    return [libraries, *found]


def start_server(services: Services, args: argparse.Namespace) -> None:
    """Serve the app on host and port until interrupted."""
    serve(services, args.host, args.port)


def _parser() -> Parser:
    parser = Parser(prog="python -m qlora_demo", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add(commands, "fetch", fetch)
    training = add_config(_add(commands, "train", train))
    training.add_argument("--processes", type=positive, default=1, help="training processes (default 1)")
    training.add_argument("--prepare", action="store_true", help="create the run's folder without starting anything")
    add_config(_add(commands, "preflight", preflight))
    planning = add_config(_add(commands, "plan", plan))
    planning.add_argument(
        "--gpu-memory", type=memory_size, metavar="24GB", help="memory of the GPU to plan for; default: this device"
    )
    listing = _add(commands, "runs", runs)
    listing.add_argument("action", choices=("list", "show", "stop", "resume", "delete"))
    listing.add_argument("run", nargs="?")
    _add_compare(_add(commands, "compare", compare))
    merging = _add(commands, "merge", merge)
    merging.add_argument("run")
    merging.add_argument("--onto", choices=get_args(MergeBase), help=_ONTO_HELP)
    merging.add_argument("--out", help="folder to create; default: inside the run's folder")
    exporting = _add(commands, "export", export)
    exporting.add_argument("run")
    exporting.add_argument("--what", choices=get_args(ExportKind), default="merged", help="default: merged")
    exporting.add_argument("--onto", choices=get_args(MergeBase), help=_ONTO_HELP)
    exporting.add_argument("--out", help="folder to create; default: inside the run's folder")
    exporting.add_argument("--push", metavar="REPO", help="hub repository to push to; the token is read from HF_TOKEN")
    reporting = _add(commands, "report", report)
    reporting.add_argument("run")
    reporting.add_argument("--out", help="folder to write to; default: inside the run's folder")
    evaluation = _add(commands, "evaluate", evaluate)
    evaluation.add_argument("run")
    evaluation.add_argument("--variants", default=_DEFAULT_COLUMNS, help=_VARIANTS_HELP)
    evaluation.add_argument("--limit", type=positive, help="at most this many rows of each split; default: all")
    faithful = _add(commands, "fidelity", fidelity)
    faithful.add_argument("run")
    faithful.add_argument("--limit", type=positive, help=f"at most this many rows; default: {FIDELITY_ROWS}")
    measuring = _add(commands, "benchmark", benchmark)
    add_arguments(measuring)
    measuring.set_defaults(show=print_benchmark)
    _add(commands, "doctor", doctor).set_defaults(show=print_checks)
    server = _add(commands, "serve", start_server)
    server.add_argument("--host")
    server.add_argument("--port", type=int)
    return parser


def _add(commands: Any, name: str, command: Callable[..., Any]) -> Parser:
    parser: Parser = commands.add_parser(name, help=command.__doc__, description=command.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.set_defaults(command=command, show=print_result)
    return parser


def _add_compare(parser: Parser) -> None:
    parser.add_argument("run")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", help="file of prompts: .txt (one per line), .csv, .jsonl")
    parser.add_argument("--one-after-the-other", action="store_true", help="default: columns take turns")
    parser.add_argument("--system", help="system prompt; default: the one the run was trained with")
    parser.add_argument("--variants", default=_DEFAULT_COLUMNS, help=_VARIANTS_HELP)
    add_knobs(parser, GenerationSettings)


def _system_prompt(services: Services, run: str) -> str:
    rows = next(iter(services.runs.heldout(run).values()), [])
    return next((m["content"] for row in rows[:1] for m in row if m["role"] == "system"), "")


def _require_answer(answers: Sequence[dict[str, Any]]) -> None:
    """Raises the first error where nothing was answered; `WorkError` where memory was short."""
    errors = [answer["error"] for answer in answers]
    if all(errors):
        raise (WorkError if errors[0].startswith("device: out of memory") else RequestError)(errors[0])
