"""What goes on in the background for as long as the app lives."""

from __future__ import annotations

from .catalog import SMOLLM2
from .dispatch import Dispatcher
from .idle import Pauser
from .services import Services
from .status import AppStatus
from .syncing import Syncer


def begin(services: Services, status: AppStatus) -> None:
    """Start all of it; returns at once."""
    settings = services.settings
    status.begin(settings, SMOLLM2, services.fetch)
    Dispatcher(services).start()
    syncer = Syncer(services)
    if settings.sync_repo:
        syncer.start()
        status.add(syncer.note)
    if settings.pause_minutes and settings.is_space:
        pauser = Pauser(services, lambda: bool(settings.sync_repo) and syncer.pending)
        pauser.start()
        status.add(pauser.note)
