"""What the app finds out in the background while the page is already up: the bundled model and the hub."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

from huggingface_hub import constants

from .catalog import BundledModel, is_fetched
from .errors import DemoError
from .records import Progress, Report
from .settings import Settings

Fetch = Callable[[BundledModel, Report], object]


class AppStatus:
    """Progress of fetching a bundled model, and whether the hub answers.  Written by threads, read by the page."""

    def __init__(self) -> None:
        self.fetching: Progress | None = None
        self.fetch_error = ""
        self.hub = "hub: checking"

    def begin(self, settings: Settings, model: BundledModel, fetch: Fetch) -> None:
        """Start finding out; returns at once."""
        threading.Thread(target=self._check_hub, daemon=True).start()
        if not is_fetched(settings, model.name):
            self.fetching = Progress("waiting to fetch the bundled model", 0.0)
            threading.Thread(target=self._fetch, args=(model, fetch), daemon=True).start()

    def _check_hub(self) -> None:
        self.hub = f"hub: {'reachable' if hub_answers() else 'not reachable'}"

    def _fetch(self, model: BundledModel, fetch: Fetch) -> None:
        try:
            fetch(model, self._note)
        except DemoError as exc:
            self.fetch_error = str(exc)
        finally:
            self.fetching = None

    def _note(self, progress: Progress) -> None:
        self.fetching = progress


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
