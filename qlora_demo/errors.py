"""Everything that may go wrong, as one small tree.

    DemoError
    ├── RequestError         the request is wrong; nothing was started        (exit 2)
    │   ├── ConfigError      a field of a config or of the generation settings
    │   ├── DataError        a data file or a row in it
    │   ├── ModelError       a base model that cannot be found or read
    │   ├── AdapterError     an adapter that is missing, damaged or made for another base
    │   ├── RunError         a run that does not exist or is in the wrong state
    │   ├── DeviceBusy       somebody else holds the device
    │   ├── NoRoom           what was asked for cannot fit on the device
    │   ├── Forbidden        who asks may not do this
    │   └── TooMany          a limit is reached
    └── WorkError            the request was right and the work failed        (exit 1)
        ├── FetchError       the bundled model could not be fetched
        ├── OutOfMemory      the device has no room
        └── WrongModel       a model is not what its column says it is

Each message is one line that names the field or file, the value, and the remedy.
"""

from __future__ import annotations


def one_line(said: object, most: int = 200) -> str:
    """What a library's error says, as part of a message of ours: its words in a line, at most so long."""
    return " ".join(str(said).split())[:most]


class DemoError(Exception):
    """Base of every error a person is meant to read."""

    exit_code = 1


class RequestError(DemoError):
    """The request is wrong; nothing was started."""

    exit_code = 2


class ConfigError(RequestError):
    """A field of a config is missing, unknown or out of range."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class DataError(RequestError):
    """A data file or one of its rows cannot be used."""


class ModelError(RequestError):
    """A base model cannot be found or read."""


class AdapterError(RequestError):
    """An adapter is missing, damaged, or was made for another base model."""


class RunError(RequestError):
    """A run does not exist, or its state does not allow the request."""


class DeviceBusy(RequestError):
    """Another process or another job holds the device."""


class NoRoom(RequestError):
    """What was asked for cannot fit on the device; nothing was loaded."""


class Forbidden(RequestError):
    """Who asks may not do this."""


class TooMany(RequestError):
    """A limit on requests, waiting people or stored things is reached."""


class WorkError(DemoError):
    """The request was right and the work failed."""


class FetchError(WorkError):
    """The bundled model could not be fetched."""


class OutOfMemory(WorkError):
    """The device has no room for what was asked."""


class WrongModel(WorkError):
    """A model is not what its column says it is: no answer is given."""
