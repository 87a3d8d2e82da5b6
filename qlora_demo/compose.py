"""The composition root that `app.py` and the command line share: settings -> services -> page."""

from __future__ import annotations

from pathlib import Path

from . import logs
from .access import Access
from .benchmarking import Benchmarks
from .catalog import BundledModel
from .checking import Checks
from .ending import saving_runs
from .gpu import Lease
from .hub import HuggingFaceHub
from .jobs import Jobs
from .launcher import Launcher
from .records import Report
from .runs import RunStore
from .services import Engine, OnDemand, Services
from .settings import Settings
from .votes import VoteStore
from .waiting import Waiting


def build_services(settings: Settings) -> Services:
    """Everything the page and the commands need; the engine, and with it torch, is loaded on first use."""
    runs = RunStore(settings.runs, settings.limits)
    lease = Lease(settings.home)

    def make_engine() -> Engine:
        from .ml.engine import Engine as RealEngine

        return RealEngine(settings, runs, lease)

    def fetch(model: BundledModel, report: Report) -> Path:
        from .ml.fetch import fetch

        return fetch(settings, model, report)

    engine = OnDemand(make_engine)
    return Services(
        settings,
        runs,
        lease,
        Launcher(runs, lease),
        Checks(runs, lambda config, halt: engine().preflight(config, halt)),
        fetch,
        engine,
        Jobs(runs),
        VoteStore(settings.home / "votes.sqlite3", settings.limits.votes_mb),
        HuggingFaceHub(),
        Benchmarks(settings, lease),
        Access(settings),
        Waiting(settings.limits.queue_length),
    )


def serve(services: Services, host: str | None = None, port: int | None = None) -> None:
    """Build the page and answer until interrupted; host and port default to Gradio's own variables."""
    from .ui.page import launch

    logs.set_up()
    with saving_runs(services):
        launch(services, host, port)
