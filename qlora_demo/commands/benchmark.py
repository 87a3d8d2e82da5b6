"""The `benchmark` command: measure, list, show, delete, and lay two results side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from ..benchmark.comparison import comparison, contrast
from ..benchmark.config import FULL, BenchmarkConfig, BenchmarkKind
from ..benchmark.notes import notes, standing
from ..benchmark.runner import read_result_file, write_result_file
from ..benchmark.tables import machine, settings, table
from ..errors import ConfigError, RequestError, WorkError
from ..gpu import device_info
from ..presets import COMPARED
from ..services import Services
from ..units import counted
from .arguments import add_command, add_config, add_knobs, out_path, train_config, with_given
from .console import print_result, report_progress

_KINDS: tuple[str, ...] = get_args(BenchmarkKind)
_ACTIONS = (*_KINDS, "list", "show", "delete", "diff")

_MEANING = (
    "training: LoRA against QLoRA; frontier: the longest row and the largest batch within --gpu-memory; rank: ranks "
    "and target layers; inference: latency by column, prompt and batch; the other actions are for stored results"
)


def add(commands: Any) -> None:
    """What to measure and how; the training settings are those of `presets.COMPARED` where they are not given."""
    parser = add_command(commands, "benchmark", benchmark, print_benchmark)
    parser.add_argument("action", choices=_ACTIONS, help=_MEANING)
    parser.add_argument("which", nargs="*", help="show and delete: an id from `benchmark list`; diff: two result files")
    parser.add_argument("--full", action="store_true", help="measure the full range instead of a quick sample of it")
    parser.add_argument("--out", help="also write the result to this file")
    add_knobs(parser, BenchmarkConfig, leave_out=("kind",))
    add_config(parser, COMPARED)


def benchmark(services: Services, args: argparse.Namespace) -> Any:
    """Measure QLoRA against LoRA, memory frontiers, ranks, or latency; list, show, delete or compare results."""
    if args.action in _KINDS:
        return _measure(services, args)
    if args.action == "list":
        return [{name: one[name] for name in ("id", "kind", "state", "error")} for one in services.benchmarks.all()]
    if args.action == "diff":
        return _side_by_side(*(read_result_file(Path(path)) for path in _given(args, 2)))
    name = _given(args, 1)[0]
    if args.action == "delete":
        services.benchmarks.delete(name)
        return {"id": name, "state": "deleted"}
    return services.benchmarks.get(name)


def print_benchmark(result: Any) -> None:
    """A benchmark for people: what was measured, each case's figures with their units, on what; lists as they are."""
    if not isinstance(result, dict) or "rows" not in result:
        print_result(result)
        return
    error = f": {result['error']}" if result["error"] else ""
    print(f"{result['id']}: {standing(result)}{error}", settings(result), sep="\n")
    found = table(result)
    for case, *figures in found.rows:
        print(f"\n{case}")
        print_result(dict(zip(found.head[1:], figures, strict=True)), 2)
    print(f"\n{notes(result)}\n{machine(result)}")


def _side_by_side(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    found = comparison(older, newer)
    return {
        "first": f"{settings(older)}; {machine(older)}",
        "second": f"{settings(newer)}; {machine(newer)}",
        "differing": contrast(older, newer) if found.rows else "The two results share no case.",
        "figures": [dict(zip(found.head, row, strict=True)) for row in found.rows],
    }


def _measure(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    options = with_given(BenchmarkConfig(kind=args.action, **(FULL if args.full else {})), args)
    config = train_config(args, COMPARED[device_info().kind])
    out = out_path(args.out)
    if out is not None and out.is_dir():
        raise ConfigError("out", f"{out} is a folder; name a file in it")
    result = services.benchmarks.run(options, config, report_progress)
    if out is not None:
        _write_out(out, result)
    return result


def _write_out(out: Path, result: dict[str, Any]) -> None:
    """What was measured, into a file beside; where that fails it is kept all the same."""
    try:
        write_result_file(out, result)
    except WorkError as exc:
        raise WorkError(f"{exc}; the result is kept, see `benchmark show {result['id']}`") from exc


def _given(args: argparse.Namespace, count: int) -> list[str]:
    if len(args.which) != count:
        raise RequestError(
            f"benchmark {args.action}: takes {counted(count, 'name')}, {len(args.which)} were given; see --help"
        )
    found: list[str] = args.which
    return found
