"""From columns as a person names them to their placement on the device; nothing is loaded, torch is not needed."""

from __future__ import annotations

from collections.abc import Container, Sequence

from .gpu import device_info
from .placement import Device, Placement, Wanted, place
from .records import Column
from .runs import RunStore
from .settings import Settings
from .sources import Origin, adapter_bytes, find_adapter, shape_of


def wanted(column: Column, origin: Origin, attached: Container[str] = ()) -> Wanted:
    """A column and what it is placed by; an adapter that is attached already takes no more room."""
    extra = 0 if origin.name in attached else adapter_bytes(origin.adapter)
    return Wanted(column, origin.model, shape_of(origin.model), origin.method, extra)


def plan_empty(settings: Settings, runs: RunStore, columns: Sequence[Column]) -> Placement:
    """What loading the columns would do while nothing is in memory."""
    found = [wanted(column, find_adapter(settings, runs, column.source)) for column in columns]
    info = device_info()
    return place(found, {}, Device(info.kind, info.free_bytes, info.total_bytes))
