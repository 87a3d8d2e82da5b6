"""The composition root that `app.py` and the command line share: settings -> services -> page."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .benchmark.runner import Benchmarks
from .catalog import BundledModel
from .checking import Checks
from .engine import Engine, OnDemand
from .errors import ConfigError
from .gpu import Lease
from .hub import HuggingFaceHub
from .jobs import Jobs
from .launcher import Launcher
from .records import Report
from .results.votes import VoteStore
from .runs import RunStore
from .services import Services
from .settings import Settings
from .system import logs
from .system.heap import collect_as_usual
from .upkeep.ending import saving_runs
from .visitors.access import Access
from .visitors.waiting import Waiting

_PORT, _LAST_PORT = "GRADIO_SERVER_PORT", 65535


def build_services(settings: Settings) -> Services:
    """Everything the page and the commands need; the engine, and with it torch, is loaded on first use."""
    runs = RunStore(settings.runs, settings.limits)
    lease = Lease(settings.home)

    def make_engine() -> Engine:
        from .ml.engine import Engine as RealEngine

        collect_as_usual()
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
    """Build the page and answer until interrupted; host and port default to Gradio's own variables.

    Raises `ConfigError` where nothing can answer on them.
    """
    _require_address(host or services.settings.host, port)
    from .ui.page import launch

    logs.set_up()
    with saving_runs(services):
        launch(services, host, port)


def _require_address(host: str, port: int | None) -> None:
    """See `serve`.  Where no port is given Gradio takes a free one, from GRADIO_SERVER_PORT on."""
    name, given = ("port", str(port)) if port is not None else (_PORT, os.environ.get(_PORT, "7860"))
    try:
        number = int(given)
    except ValueError:
        number = 0
    if not 1 <= number <= _LAST_PORT:
        raise ConfigError(name, f"{given!r} is not allowed; give a whole number >= 1 and <= {_LAST_PORT}")
    if ":" in host and not host.endswith("]"):
        raise ConfigError("host", f"{host} is not allowed; write an address of IPv6 as [{host}]")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port or 0, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found)  # IPv4 where a name has both, as Gradio asks
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as exc:
        where = host if port is None else f"{host}, port {port}"
        raise ConfigError("host", f"{where}: cannot answer there ({exc}); name this machine and a free port") from exc
