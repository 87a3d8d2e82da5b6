"""What the command line shows while work goes on and when it is done: progress on stderr, results for people."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DeviceBusy, WorkError
from ..records import Progress, Step
from ..results.report import finite
from ..runs import Run
from ..services import Services
from ..units import memory


def follow(services: Services, run: Run) -> Run:
    """Print a run's losses until it has ended; the run as it ended.  One that waits begins when the device is free."""
    offset = 0
    while True:
        if run.state.status == "queued":
            with contextlib.suppress(DeviceBusy):
                services.launcher.start_next()
        run = services.runs.get(run.id)
        lines, offset = services.runs.read_since(run.id, offset)
        for line in lines:
            what = f"loss {line.loss:.4f}" if line.loss is not None else f"held-out loss {line.eval_loss:.4f}"
            print(f"step {line.step}/{run.state.max_steps}  {what}", file=sys.stderr)
        if run.state.ended and not run.alive:
            return run
        time.sleep(0.5)


def last(steps: Iterator[Step]) -> dict[str, Any]:
    """The whole result of a long piece of work, its progress printed."""
    result: dict[str, Any] = {}
    for step in steps:
        report_progress(step.progress)
        result = step.result or result
    return result


def report_progress(progress: Progress) -> None:
    """One line on stderr."""
    share = "" if progress.fraction is None else f"{progress.fraction:4.0%} "
    print(f"{share}{progress.text}", file=sys.stderr)


def tell(result: Any, show: Callable[[Any], None] | None) -> None:
    """A result on stdout, as one JSON document where nothing shows it; raises `WorkError` where stdout takes none."""
    if sys.stdout is None:  # closed by who started us
        return
    try:
        if show is None:
            print(json.dumps(finite(result), indent=2, allow_nan=False))
        elif result is not None:
            show(result)
        sys.stdout.flush()
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        if not isinstance(exc, BrokenPipeError):  # who read it, `head` say, has seen enough
            raise WorkError(f"stdout: the result cannot be written ({exc.strerror}); send it elsewhere") from exc


def print_result(result: Any, indent: int = 0) -> None:
    """A result for people: the same document, indented, numbers rounded, bytes in a unit that suits them."""
    if not result:
        print(f"{' ' * indent}none")
        return
    items = result.items() if isinstance(result, dict) else enumerate(result)
    for key, value in items:
        if isinstance(value, dict | list) and value:
            print(f"{' ' * indent}{key}")
            print_result(value, indent + 2)
        else:
            print(f"{' ' * indent}{key}: {_written(str(key), value)}")


def _written(name: str, value: Any) -> str:
    if name.endswith("bytes") and isinstance(value, int):
        return f"{memory(value)} ({value:,} bytes)"
    if name.endswith("_at") and isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_checks(result: dict[str, Any]) -> None:
    """What the doctor found, a line for each check, with what to do where it is not well."""
    for check in result["checks"]:
        mark = "ok  " if check["ok"] else "FAIL" if check["needed"] else "warn"
        print(f"{mark}  {check['name']}: {check['found']}")
        if not check["ok"]:
            print(f"      {check['remedy']}")
