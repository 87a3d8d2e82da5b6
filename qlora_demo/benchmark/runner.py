"""A benchmark is a directory, and a process that fills it; each of its cases is a process of its own.

    python -m qlora_demo.benchmark.runner BENCHMARK_DIR DESCRIPTOR...

result.json   what was asked, how it is measured, where it stands, the rows so far   (replaced atomically)
log.txt       everything that the cases printed
stop          present once somebody asked to stop
lock          held by the process that measures and the one it measures in, while either lives

DESCRIPTOR...: those of the locks that the process inherits, which its own processes inherit in turn.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, Self

from ..columns import parse
from ..config import TrainConfig
from ..errors import ConfigError, RequestError, RunError, WorkError
from ..gpu import Lease, device_info
from ..plan.choices import refuse
from ..plan.memory_plan import Kind, parse_memory
from ..records import Progress, Report
from ..runs import RunStore
from ..settings import Settings
from ..sources import find_adapter, planned_shape
from ..stored import require_room
from ..system.children import environment, spawn
from ..system.disk import new_folder, write_atomically
from ..system.locks import HeldLock, is_held
from .cases import METHODS, Case, cases
from .config import BenchmarkConfig
from .fault import fault

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[a-z]+-[0-9a-f]{4}")
_POLL_SECONDS = 0.2
_ENOUGH_TO_DRIFT = 3
_MOST_BYTES = 16 << 20
RESULT = "result.json"
_KEPT, _ENDED = ("id", "state", "error", "options", "config", "method"), ("started_at", "ended_at")
"""What a result in a benchmark's own directory holds, and more of one that came to its end."""
_EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
"""glibc then gives back at once what is freed, so that on a CPU a try does not count what an earlier one left; it costs
speed, which the frontier does not tell."""


class Process(Protocol):
    """What measures a case: `subprocess.Popen`, as far as it is used."""

    stdin: IO[str] | None
    stdout: IO[str] | None

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: Any) -> None: ...


Start = Callable[[BinaryIO, tuple[int, ...], dict[str, str]], Process]
"""A log, descriptors to hold and an environment -> what measures one case."""


def start_case(log: BinaryIO, locks: tuple[int, ...], environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that measures the case it is given."""
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_demo.ml.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        pass_fds=locks,
        env=environment,
    )


class Benchmarks:
    """All benchmarks under one directory, measured one at a time on the device that `lease` guards."""

    def __init__(self, settings: Settings, lease: Lease) -> None:
        self.settings = settings
        self.root = settings.home / "benchmarks"
        self.lease = lease

    def check(self, options: BenchmarkConfig, config: TrainConfig) -> list[Case]:
        """What would be measured; raises `RequestError` for what cannot be done here, or where too much is kept
        already."""
        kind = device_info().kind
        self._check(options, config, kind)
        planned = cases(options, config, kind)
        require_room(self.settings.home, self.settings.limits)
        return planned

    @contextmanager
    def new(self, options: BenchmarkConfig, config: TrainConfig) -> Iterator[tuple[str, tuple[int, int]]]:
        """A new benchmark's id, and the descriptors of the device's lock and of its own, for whoever is to hold them
        too.  It appears under its name only when it is whole, and held.  Raises what `check` raises, and `DeviceBusy`.
        """
        planned = self.check(options, config)
        with ExitStack() as held:
            device = self.lease.acquire("benchmark")
            held.callback(device.release)
            with new_folder(self.root, options.kind) as (name, draft):
                lock = HeldLock.acquire(draft / "lock", {})
                assert lock is not None, "nobody else knows of the draft"
                held.callback(lock.release)
                write_result(draft, {"id": name} | _begun(options, config, len(planned)))
            device.annotate({"purpose": "benchmark", "detail": name})
            yield name, (device.fd, lock.fd)

    def start(self, options: BenchmarkConfig, config: TrainConfig) -> str:
        """Measure in a process that inherits the device's lock and the benchmark's, and outlives the app; its id."""
        with self.new(options, config) as (name, locks):
            folder = self.path(name)
            command = [sys.executable, "-m", "qlora_demo.benchmark.runner", str(folder), *map(str, locks)]
            process = spawn(command, folder / "log.txt", locks)
        threading.Thread(target=process.wait, daemon=True).start()  # reaps it
        return name

    def run(
        self, options: BenchmarkConfig, config: TrainConfig, report: Report, start: Start = start_case
    ) -> dict[str, Any]:
        """Measure in this process; the whole result.  Raises what `new` and `measure` raise."""
        with self.new(options, config) as (name, locks):
            return measure(self.path(name), report, locks, start)

    def get(self, name: str) -> dict[str, Any]:
        """A benchmark's result as it stands; one whose process died without an end reads as failed."""
        result = read_result_file(self.path(name) / RESULT)
        needed = _KEPT if result.get("state") in ("starting", "running", "failed") else (*_KEPT, *_ENDED)
        if missing := [field for field in needed if field not in result]:
            raise ConfigError("result", f"benchmark {name}: its {RESULT} holds no {missing[0]}; delete it")
        if result["state"] in ("starting", "running") and not is_held(self.path(name) / "lock"):
            return result | {
                "state": "failed",
                "error": "its process ended without reporting an error; see its log.txt",
            }
        return result

    def all(self) -> list[dict[str, Any]]:
        """Newest first; what cannot be read is left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except RequestError:
                continue
        return found

    def names(self) -> list[str]:
        """Newest first."""
        if not self.root.is_dir():
            return []
        return sorted((path.name for path in self.root.iterdir() if _ID.fullmatch(path.name)), reverse=True)

    def stop(self, name: str) -> None:
        """Ask for the end of what is measured; the rows so far are kept."""
        if not is_held(self.path(name) / "lock"):
            raise RunError(f"benchmark {name}: it has ended; there is nothing to stop")
        (self.path(name) / "stop").touch()

    def delete(self, name: str) -> None:
        """Remove a benchmark that is not being measured."""
        if is_held(self.path(name) / "lock"):
            raise RunError(f"benchmark {name}: still being measured; stop it first")
        shutil.rmtree(self.path(name))

    def path(self, name: str) -> Path:
        """The directory of a benchmark that exists; names are checked, so none leads elsewhere."""
        path = self.root / name
        if not _ID.fullmatch(name) or path.is_symlink() or not path.is_dir():
            raise RunError(f"benchmark {name!r}: no such benchmark; `python -m qlora_demo benchmark list` shows them")
        return path

    def _check(self, options: BenchmarkConfig, config: TrainConfig, kind: Kind) -> None:
        refuse(config, kind)
        try:
            parse_memory(options.gpu_memory)
        except ValueError as exc:
            raise ConfigError("gpu_memory", f"{options.gpu_memory!r} is not allowed; give a size like 24GB") from exc
        for name in options.names("variants"):
            parse(name, options.run)
        if options.kind == "inference" and options.run:
            find_adapter(self.settings, RunStore(self.settings.runs), options.run)
        else:
            planned_shape(self.settings, config.model)


def _begun(options: BenchmarkConfig, config: TrainConfig, count: int) -> dict[str, Any]:
    return {
        "kind": options.kind,
        "state": "starting",
        "error": "",
        "cases": count,
        "options": options.model_dump(),
        "config": config.model_dump(),
        "method": METHODS[options.kind],
        "machine": {},
        "rows": [],
    }


def measure(folder: Path, report: Report, locks: tuple[int, ...], start: Start = start_case) -> dict[str, Any]:
    """Measure every case of a benchmark directory, one process each; its result, which is kept after every row.

    ``locks``: descriptors that each case's process inherits, so that they are held while it lives.

    Raises `RequestError` where a case's request is wrong and `WorkError` where its process broke; the rows before
    are kept.
    """
    result = read_result_file(folder / RESULT) | {"state": "running", "started_at": time.time()}
    options, config = BenchmarkConfig(**result["options"]), TrainConfig(**result["config"])
    planned = cases(options, config, device_info().kind)
    try:
        for at, (case, again) in enumerate(_in_turn(planned, result)):
            count = len(planned) + again
            progress = Progress(f"{case.name}{', once more' * again} ({at + 1} of {count})", at / count)
            report(progress)
            result["progress"] = {"text": progress.text, "fraction": progress.fraction}
            write_result(folder, result)
            for told in measure_case(folder, options, case, locks, start):
                _take(result, case, told, again=again)
                write_result(folder, result)
            if (folder / "stop").exists():
                break
    except (RequestError, WorkError) as exc:
        write_result(folder, result | {"state": "failed", "error": str(exc), "ended_at": time.time()})
        raise
    state = "stopped" if (folder / "stop").exists() else "finished"
    result |= {"state": state, "ended_at": time.time()}
    write_result(folder, result)
    return result


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Replace a benchmark's result."""
    write_result_file(folder / RESULT, result)


def write_result_file(path: Path, result: dict[str, Any]) -> None:
    """Replace a result in any file; raises `WorkError` where it cannot be written."""
    write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def read_result_file(path: Path) -> dict[str, Any]:
    """A benchmark's result out of a file, this app's or one that was sent; raises `ConfigError` that names it."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError("result", f"{path.name} is larger than a benchmark's result; give a result.json")
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError("result", f"{path.name} cannot be read ({exc}); give a benchmark's result.json") from exc
    if wrong := fault(result):
        raise ConfigError("result", f"{path.name}: {wrong} is not as in a benchmark's result; give a result.json")
    found: dict[str, Any] = result
    return found


def _in_turn(planned: list[Case], result: dict[str, Any]) -> Iterator[tuple[Case, bool]]:
    """Every case; where three or more are trained, the first that could be once more, which tells how far the machine
    drifted meanwhile.  Its answers are not scored again."""
    yield from ((case, False) for case in planned)
    trained = {row["case"] for row in result["rows"] if "step_median_seconds" in row}
    if len(planned) >= _ENOUGH_TO_DRIFT and trained:
        first = next(case for case in planned if case.name in trained)
        yield replace(first, config=first.config.changed(score_rows=min(1, first.config.score_rows))), True


def _take(result: dict[str, Any], case: Case, told: dict[str, Any], *, again: bool) -> None:
    if "refused" in told:
        raise RequestError(told["refused"])
    if "machine" in told:
        result["machine"] = told["machine"]
    if "row" in told and again:
        result["again"] = {"case": case.name, "step_median_seconds": told["row"].get("step_median_seconds")}
    elif "row" in told:
        result["rows"].append({"case": case.name} | told["row"])


def measure_case(
    folder: Path, options: BenchmarkConfig, case: Case, locks: tuple[int, ...] = (), start: Start = start_case
) -> Iterator[dict[str, Any]]:
    """What a case's process says (see `ml.measure`), until it ends, breaks, or the folder holds a `stop`."""
    asked = {"options": options.model_dump(), "config": case.config.model_dump()}
    with (folder / "log.txt").open("ab") as log:
        process = start(log, locks, environment() | (_EXACT_MEMORY if options.kind == "frontier" else {}))
    assert process.stdin is not None and process.stdout is not None
    watch = threading.Thread(target=_kill_when_asked, args=(process, folder / "stop"), daemon=True)
    watch.start()
    with process:
        try:
            with suppress(BrokenPipeError), process.stdin as asking:
                asking.write(json.dumps(asked | {"name": case.name, "column": case.column}))
            yield from (json.loads(line) for line in process.stdout if line.endswith("\n"))
            if (code := process.wait()) and not (folder / "stop").exists():
                yield _broken(case, code, folder / "log.txt")
        finally:
            process.kill()


def _broken(case: Case, code: int, log: Path) -> dict[str, Any]:
    """The operating system kills what takes more memory than there is; anything else is a fault."""
    if code == -9:
        return {"row": {"fits": False, "error": "the system killed the process: out of memory"}}
    raise WorkError(f"benchmark: {case.name} failed (exit code {code}); its log is {log}")


def _kill_when_asked(process: Process, stop: Path) -> None:
    while process.poll() is None:
        if stop.exists():
            process.kill()
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    measure(Path(sys.argv[1]), lambda progress: print(progress.text, flush=True), tuple(map(int, sys.argv[2:])))
