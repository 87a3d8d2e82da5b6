"""What goes on in the background for as long as the app lives."""

from __future__ import annotations

from ..catalog import SMOLLM2
from ..services import Services
from ..system.disk import clear_left
from ..system.steady import Steady
from .dispatch import Dispatcher
from .idle import Pauser
from .status import AppStatus
from .syncing import Syncer


def begin(services: Services, status: AppStatus) -> None:
    """Start all of it; returns at once."""
    settings = services.settings
    status.begin(settings, SMOLLM2, services.fetch)
    Steady("clearing").once(lambda: _clear(services))
    Dispatcher(services).start()
    syncer = Syncer(services)
    if settings.sync_repo:
        syncer.start()
        status.add(syncer.note)
    if settings.pause_minutes and settings.is_space:
        pauser = Pauser(services, lambda: status.fetching or (bool(settings.sync_repo) and syncer.pending))
        pauser.start()
        status.add(pauser.note)


def _clear(services: Services) -> None:
    """Remove what an app that was killed left half made or half deleted."""
    for folder in (services.runs.root, services.benchmarks.root):
        clear_left(folder)
