"""What the page and the command line work with, handed to them whole: neither builds anything itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .benchmark.runner import Benchmarks
from .catalog import BundledModel
from .checking import Checks
from .engine import OnDemand
from .gpu import Lease
from .hub import Hub
from .jobs import Jobs
from .launcher import Launcher
from .plan.placement import Placement
from .plan.planning import plan_empty
from .records import Column, Report
from .results.votes import VoteStore
from .runs import RunStore
from .settings import Settings
from .visitors.access import Access
from .visitors.waiting import Waiting


@dataclass(frozen=True)
class Services:
    """One app's parts.  ``fetch`` makes a bundled model's folder where it is missing; its path."""

    settings: Settings
    runs: RunStore
    lease: Lease
    launcher: Launcher
    checks: Checks
    fetch: Callable[[BundledModel, Report], Path]
    engine: OnDemand
    jobs: Jobs
    votes: VoteStore
    hub: Hub
    benchmarks: Benchmarks
    access: Access
    waiting: Waiting

    def plan(self, columns: Sequence[Column]) -> Placement:
        """What loading the columns would do; no engine is made for the question."""
        if self.engine.made:
            return self.engine.made.plan(columns)
        return plan_empty(self.settings, self.runs, columns)

    def holder(self) -> str:
        """Who works on the device, in words: this app's job where one uses the models, else who holds the lock."""
        job = self.jobs.on_models
        return f"{job.kind} of run {job.run}, see the Evaluate tab" if job else self.lease.holder()

    def close(self) -> None:
        """End what works with the models, after the step it is in, and free them and the device."""
        self.jobs.stop()
        self.engine.release()
