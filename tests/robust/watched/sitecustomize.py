"""Imported by every Python that has this folder on its path: tells which hosts it looks up and which it connects to.

Nothing leaves: what is not on this machine is refused, after it was told.
"""

from __future__ import annotations

import os
import socket
from typing import Any

_LOG = os.environ["QLORA_DEMO_TEST_SOCKETS"]
_HERE = ("127.", "::1", "localhost", "0.0.0.0")
_getaddrinfo, _connect = socket.getaddrinfo, socket.socket.connect


def _tell(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name and not name.startswith(_HERE):
        with open(_LOG, "a", encoding="utf-8") as log:  # noqa: PTH123 - nothing else is imported yet
            log.write(name + "\n")
        raise OSError(f"{name}: no network in this test")


def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    _tell(host)
    return _getaddrinfo(host, *args, **kwargs)


def connect(self: socket.socket, address: Any) -> Any:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _tell(address[0])
    return _connect(self, address)


socket.getaddrinfo = getaddrinfo
socket.socket.connect = connect  # type: ignore[assignment, method-assign]
