"""Start and stop the training process.  It lives on without us: the run directory is all that ties it to the app."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

from .config import TrainConfig
from .errors import DeviceBusy, RunError
from .gpu import Lease, device_info, gpu_count
from .plan.choices import refuse, refuse_processes
from .records import RunState
from .runs import HELD, Run, RunStore, write_state
from .system import logs
from .system.children import spawn
from .system.locks import HeldLock


class Launcher:
    """Starts one training at a time on the device that `lease` guards."""

    def __init__(self, runs: RunStore, lease: Lease) -> None:
        self.runs = runs
        self.lease = lease
        self._closed = False

    def close(self) -> None:
        """Start nothing from now on."""
        self._closed = True

    def start(self, config: TrainConfig, processes: int = 1) -> Run:
        """Create a run and spawn its process, which inherits the run's lock and the device's."""
        if (active := self.runs.active()) is not None:
            raise DeviceBusy(f"device: run {active.id} is training; wait for it or stop it")
        refuse_here(config, processes)
        with self._device() as device:
            run = self.runs.create(config)
            self._start(run, RunState(status="created", processes=processes), device)
        return self.runs.get(run.id)

    def resume(self, name: str) -> Run:
        """Have a run that was interrupted go on from its last whole checkpoint, or where there is none from its first
        step, when the device is free."""
        run = self.runs.get(name)
        if not run.resumable:
            why = "there is nothing left to train" if run.state.ended else "it has not ended"
            raise RunError(f"run {name}: {run.state.status}, {why}; start a new run with its settings")
        (run.path / "stop").unlink(missing_ok=True)
        write_state(run.path, replace(run.state, status="queued", error="", refused=False, lighter=()))
        logs.event("run.queued", run=run.id)
        with contextlib.suppress(DeviceBusy):
            self.start_next()
        return self.runs.get(run.id)

    def start_next(self) -> Run | None:
        """Start the run that has waited longest, if there is one and the device is free; that run."""
        queued = self.runs.waiting("queued")
        if not queued or self.runs.active() is not None:
            return None
        with self._device() as device:
            run = self.runs.get(queued[0].id)
            if run.state.status != "queued":  # another app on this home was faster
                return None
            self._start(run, run.state, device)
        return self.runs.get(run.id)

    @contextlib.contextmanager
    def _device(self) -> Iterator[HeldLock]:
        if self._closed:
            raise DeviceBusy("device: the app is ending; start it again")
        device = self.lease.acquire("training")
        try:
            yield device
        finally:
            device.release()

    def _start(self, run: Run, state: RunState, device: HeldLock) -> None:
        device.annotate({"purpose": "training", "detail": run.id})
        lock = HeldLock.acquire(run.lock, {})
        if lock is None:
            raise RunError(f"run {run.id}: its lock is held already; start another run")
        try:
            write_state(run.path, replace(state, status="starting"))
            self._spawn(run, state.processes, (device.fd, lock.fd))
        finally:
            lock.release()

    def _spawn(self, run: Run, processes: int, inherited: tuple[int, ...]) -> None:
        process = spawn(train_command(run, processes), run.path / "train.log", inherited)
        logs.event("run.started", run=run.id, processes=processes)
        threading.Thread(target=self._reap, args=(run.id, process), daemon=True).start()

    def _reap(self, run: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a training process."""
        code = process.wait()
        with contextlib.suppress(RunError):  # it may have been deleted by now
            logs.event("run.ended", run=run, state=self.runs.get(run).state.status, exit_code=code)


def refuse_here(config: TrainConfig, processes: int) -> None:
    """Raise `ConfigError`, with the reason, for what this machine cannot do."""
    refuse(config, device_info().kind)
    refuse_processes(config, processes, gpu_count())


def train_command(run: Run, processes: int) -> list[str]:
    """The training process's command line; under torchrun when there is more than one process."""
    module = ["-m", "qlora_demo.ml.train", str(run.path), HELD]
    if processes == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *torchrun, *module]
