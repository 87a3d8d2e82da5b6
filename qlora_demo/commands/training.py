"""The commands before and around a run: `train`, `preflight`, `plan`, `runs`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from typing import Any

from ..errors import RequestError, RunError, WorkError
from ..plan.planning import plan_training
from ..runs import Run
from ..services import Services
from ..system.halt import Halt
from .arguments import add_command, add_config, memory_size, positive, train_config
from .console import follow, last, print_result


def add(commands: Any) -> None:
    """Their parsers."""
    training = add_config(add_command(commands, "train", train, print_result))
    training.add_argument("--processes", type=positive, default=1, help="training processes (default 1)")
    training.add_argument("--prepare", action="store_true", help="create the run's folder without starting anything")
    add_config(add_command(commands, "preflight", preflight, print_result))
    planning = add_config(add_command(commands, "plan", plan, print_result))
    planning.add_argument(
        "--gpu-memory", type=memory_size, metavar="24GB", help="memory of the GPU to plan for; default: this device"
    )
    listing = add_command(commands, "runs", runs, print_result)
    listing.add_argument("action", choices=("list", "show", "stop", "resume", "delete"))
    listing.add_argument("run", nargs="?")


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
