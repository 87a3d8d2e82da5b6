"""What the app found when it started, and what it does in the background while the page is already up."""

from __future__ import annotations

import functools
import http.client
import logging
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

from huggingface_hub import constants

from .. import __version__
from ..catalog import BundledModel, is_fetched
from ..errors import DemoError
from ..gpu import bf16_in_words, device_info
from ..records import Note, Progress, Report
from ..settings import Settings
from ..system import logs
from ..system.children import environment
from ..system.disk import is_mounted
from ..system.steady import Steady
from ..units import memory
from .preload import preload

_ZERO_GPU = (
    "hardware: ZeroGPU lends a GPU to single calls, and nothing here asks for one; choose another in the settings"
)
Fetch = Callable[[BundledModel, Report], object]


class AppStatus:
    """What the app found when it started and what it does in the background.  Written by threads, read by the page.

    ``found`` holds words by subject; ``hub`` is one line.
    """

    def __init__(self) -> None:
        self.hub = "hub: checking"
        self.found: dict[str, str] = {}
        self._notes: dict[str, Note] = {}
        self._others: list[Callable[[], Note | None]] = []

    def begin(self, settings: Settings, model: BundledModel, fetch: Fetch) -> None:
        """Look around, log what is found, and start what takes longer; returns at once."""
        self.found = look_around(settings)
        logs.event("app.started", logging.INFO, **self.found)
        Steady("hub").once(self._check_hub)
        if device_info().kind == "cuda":
            Steady("gpu").once(self._check_gpu)
        if settings.zero_gpu:
            self._notes["hardware"] = Note(_ZERO_GPU, bad=True)
            logs.event("hardware.unusable", logging.ERROR, why=_ZERO_GPU)
        if not is_fetched(settings, model.name):
            self._begin("bundled model", lambda report: fetch(model, report))
        for name in settings.preload:
            self._begin(f"preload {name}", functools.partial(preload, name))

    def add(self, note: Callable[[], Note | None]) -> None:
        """Have what else goes on in the background tell its note."""
        self._others.append(note)

    def notes(self) -> list[Note]:
        """What there is to say, in the order it began."""
        others = [note for other in self._others if (note := other()) is not None]
        return [Note(self.hub), *self._notes.values(), *others]

    @property
    def fetching(self) -> bool:
        """Whether a download is under way."""
        return any(note.fraction is not None for note in self.notes())

    def _check_hub(self) -> None:
        answers = False
        try:
            answers = hub_answers()
        finally:
            self.hub = f"hub: {'reachable' if answers else 'not reachable'}"
            logs.event("hub.checked", reachable=answers)

    def _check_gpu(self) -> None:
        """Torch is asked in a process of its own: here it would take memory for as long as the app lives."""
        command = [sys.executable, "-m", "qlora_demo.ml.usable"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        if done.stdout:
            self._notes["gpu"] = Note(f"gpu: {done.stdout}", bad=True)
            logs.event("gpu.unusable", logging.ERROR, why=done.stdout)

    def _begin(self, what: str, work: Callable[[Report], object]) -> None:
        self._notes[what] = Note(f"{what}: waiting", 0.0)
        Steady(what).once(functools.partial(self._do, what, work))

    def _do(self, what: str, work: Callable[[Report], object]) -> None:
        def note(progress: Progress) -> None:
            self._notes[what] = Note(f"{what}: {progress.text}", progress.fraction or 0.0)

        logs.event("fetch.started", what=what)
        try:
            work(note)
        except DemoError as exc:
            self._notes[what] = Note(f"{what}: {exc}", bad=True)
            logs.event("fetch.failed", logging.ERROR, what=what, why=str(exc))
        except Exception as exc:  # noqa: BLE001 - told at the top of the page, where it would seem to go on forever
            self._notes[what] = Note(f"{what}: failed ({type(exc).__name__}); the log says more", bad=True)
            logs.event("fetch.failed", logging.ERROR, exc, what=what, why=type(exc).__name__)
        else:
            del self._notes[what]
            logs.event("fetch.ended", what=what)


def look_around(settings: Settings) -> dict[str, str]:
    """The device, its memory, whether it has bf16, and where runs are kept, in words; torch is not asked."""
    device, home = device_info(), settings.home
    return {
        "version": f"{__version__}, Python {platform.python_version()}",
        "device": device.name,
        "memory": f"{memory(device.free_bytes)} of {memory(device.total_bytes)} free",
        "bf16": bf16_in_words(),
        "home": f"{home}{_lost(settings)}",
        "disk": f"writable, {memory(shutil.disk_usage(home).free)} free",
        "space": settings.space or "no",
    }


def _lost(settings: Settings) -> str:
    """That what is kept goes with the container, and why; empty where it stays, as far as can be told."""
    if settings.disk is None:
        return ""
    if settings.disk not in settings.home.parents:
        return f"; {settings.disk} cannot be used, so what is kept here is lost with the container"
    if not is_mounted(settings.disk):
        return f"; no volume is mounted at {settings.disk}, so in a container what is kept here is lost with it"
    return ""


def hub_answers(timeout: float = 3.0) -> bool:
    """Whether the model hub can be reached; False also where HF_HUB_OFFLINE asks not to."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
