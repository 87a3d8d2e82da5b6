"""Start and stop the training process.  It lives on without us: the run directory is all that ties it to the app."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from .config import TrainConfig
from .errors import DeviceBusy, RunError
from .gpu import Lease
from .locks import HeldLock
from .records import RunState
from .runs import Run, RunStore, write_state

_CHECKOUT = str(Path(__file__).resolve().parent.parent)


class Launcher:
    """Starts one training at a time on the device that `lease` guards."""

    def __init__(self, runs: RunStore, lease: Lease) -> None:
        self.runs = runs
        self.lease = lease

    def start(self, config: TrainConfig, processes: int = 1) -> Run:
        """Create a run and spawn its process, which inherits the run's lock and the device's."""
        if (active := self.runs.active()) is not None:
            raise DeviceBusy(f"device: run {active.id} is training; wait for it or stop it")
        device = self.lease.acquire("training")
        try:
            run = self.runs.create(config)
            device.annotate({"purpose": "training", "detail": run.id})
            self._start(run, processes, device)
        finally:
            device.release()
        return self.runs.get(run.id)

    def _start(self, run: Run, processes: int, device: HeldLock) -> None:
        lock = HeldLock.acquire(run.lock, {})
        if lock is None:
            raise RunError(f"run {run.id}: its lock is held already; start another run")
        try:
            write_state(run.path, RunState(status="starting"))
            self._spawn(run, processes, (device.fd, lock.fd))
        finally:
            lock.release()

    def _spawn(self, run: Run, processes: int, inherited: tuple[int, ...]) -> None:
        with (run.path / "train.log").open("ab") as log:
            process = subprocess.Popen(
                train_command(run, processes),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([_CHECKOUT, os.environ.get("PYTHONPATH", "")])},
            )
        threading.Thread(target=process.wait, daemon=True).start()  # reaps it


def train_command(run: Run, processes: int) -> list[str]:
    """The training process's command line; under torchrun when there is more than one process."""
    module = ["-m", "qlora_demo.ml.train", str(run.path)]
    if processes == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *torchrun, *module]
