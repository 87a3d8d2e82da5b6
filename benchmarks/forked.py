"""Every benchmark in one go, on a machine that is paid for by the minute.

    python -m benchmarks.forked training frontier plan --out FOLDER --seconds 120 [--name h200] [--model shape:NAME ...]

Each case is a process of its own, as ever, but forked from this one, which has imported the libraries: that saves their
imports, some ten seconds a case.  CUDA must not have been touched before a fork, and bitsandbytes asks the device for
its capability as it is imported; it is told one meanwhile.  A processor's frontier is for the command alone: its
allocator is told at its start to give memory back.  A benchmark is stopped after so many seconds and keeps its
rows.  `plan` is `benchmarks.plan_truth`.  The flags are the benchmark command's, and its defaults.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, BinaryIO, Self, get_args
from unittest import mock

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import torch

from benchmarks import plan_truth
from qlora_demo.benchmark.config import BenchmarkConfig, BenchmarkKind
from qlora_demo.benchmark.runner import Benchmarks, measure, write_result_file
from qlora_demo.commands.arguments import Parser, add_config, add_knobs, train_config, with_given
from qlora_demo.errors import DemoError
from qlora_demo.gpu import Lease, device_info
from qlora_demo.presets import COMPARED
from qlora_demo.settings import Settings

_POLL_SECONDS = 0.02


class Forked:
    """A child of this process that measures one case; as much of `subprocess.Popen` as a benchmark asks of it."""

    def __init__(self, log: BinaryIO, locks: tuple[int, ...], environment: dict[str, str]) -> None:
        asked, told = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self._asking = threading.Lock()
        self._pid = os.fork()
        if not self._pid:
            _measure((asked[0], told[1], log.fileno()), (asked[1], told[0]), environment)
        for theirs in (asked[0], told[1]):
            os.close(theirs)
        self.stdin: IO[str] | None = os.fdopen(asked[1], "w", encoding="utf-8")
        self.stdout: IO[str] | None = os.fdopen(told[0], encoding="utf-8")

    def poll(self) -> int | None:
        with self._asking:
            if self.returncode is None:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(_POLL_SECONDS)
        return code

    def kill(self) -> None:
        with self._asking:
            if self.returncode is None:
                os.kill(self._pid, 9)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.stdout:
            self.stdout.close()
        self.wait()


def _measure(streams: tuple[int, int, int], left: tuple[int, int], environment: dict[str, str]) -> None:
    """In the child: its streams in place, then the case; never returns."""
    code = 1
    try:
        for descriptor in left:
            os.close(descriptor)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        os.environ.clear()
        os.environ.update(environment)
        from qlora_demo.ml import measure

        measure.main()
        code = 0
    except BaseException:  # noqa: BLE001 - what it was is in the log, and the code says that it was
        traceback.print_exc()
    os._exit(code)


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    import_libraries()
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        path = args.out / f"{kind}_{args.name}.json"
        print(f"{time.strftime('%X')} {kind} -> {path}", flush=True)
        (plan if kind == "plan" else benchmark)(kind, args, path)


def arguments() -> Parser:
    """The benchmark command's flags, and how long each may take."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="+", choices=(*get_args(BenchmarkKind), "plan"))
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--seconds", type=float, required=True, help="after which each is stopped")
    parser.add_argument("--name", default="gpu", help="ends the files' names")
    add_knobs(parser, BenchmarkConfig, leave_out=("kind",))
    add_config(parser)
    return parser


def import_libraries() -> None:
    """Import what cases import, without touching CUDA."""
    here = {"is_available": lambda: True, "device_count": lambda: 1, "get_device_capability": lambda *_: (9, 0)}
    with mock.patch.multiple(torch.cuda, **(here if torch.version.cuda else {"is_available": lambda: False})):
        import qlora_demo.ml.measure
    touched = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    assert not touched, f"{qlora_demo.ml.measure.__name__} touched CUDA: no fork could use it"


def benchmark(kind: BenchmarkKind, args: argparse.Namespace, path: Path) -> None:
    """One benchmark, stopped as a person would; its rows are written whatever comes."""
    settings = Settings.from_environment()
    benchmarks = Benchmarks(settings, Lease(settings.home))
    options = with_given(BenchmarkConfig(kind=kind), args)
    config = train_config(args, COMPARED[device_info().kind])
    with benchmarks.new(options, config) as (name, locks):
        timer = threading.Timer(args.seconds, benchmarks.stop, [name])
        timer.daemon = True
        timer.start()
        try:
            measure(benchmarks.path(name), lambda progress: print(f"  {progress.text}", flush=True), locks, Forked)
        except DemoError as exc:
            print(f"  {exc}", flush=True)
        finally:
            timer.cancel()
            write_result_file(path, benchmarks.get(name))


def plan(kind: str, args: argparse.Namespace, path: Path) -> None:
    """The plan against what is taken, for as many configurations as there is time."""
    until = time.monotonic() + args.seconds
    for document in plan_truth.documents(Forked):
        write_result_file(path, document)
        if time.monotonic() > until:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
