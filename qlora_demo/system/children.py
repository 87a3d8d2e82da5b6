"""The environment of the processes that the app starts."""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = str(Path(__file__).resolve().parents[2])


def environment() -> dict[str, str]:
    """This process's own, with which another finds this package from whatever folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([_CHECKOUT, os.environ.get("PYTHONPATH", "")])}
