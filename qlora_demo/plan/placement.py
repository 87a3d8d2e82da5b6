"""Which weights fit on the device together: arithmetic before anything is loaded.

Weights are held in units; columns share them.  A base in NF4 costs nothing beside an adapter on NF4, so where a 16-bit
base of its own has no room, the base column is that copy with the adapter off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

from ..memory import ModelShape, kv_bytes, weight_bytes
from ..records import BaseForm, Column, MergeBase
from ..units import GIB

CONTEXT_TOKENS = 1024
"""Conversation and answer that each column must have room for."""
CUDA_CONTEXT_BYTES = GIB // 2
"""The driver's own share of a GPU, and the allocator's slack."""
_PREFILL_SHARE = 0.02
"""Working memory of a prefill and of dequantizing one layer, as a share of the largest weights."""

UnitKind = BaseForm | Literal["merged", "merged-4bit"]


@dataclass(frozen=True)
class Unit:
    """Weights held once: a base, or a merge of `adapter`, as its files were then, into one of its `onto` forms."""

    kind: UnitKind
    model: str
    adapter: str = ""
    onto: MergeBase | None = None
    version: str = ""


@dataclass(frozen=True)
class Wanted:
    """A column and the facts it is placed by; ``form`` is the base its adapter was trained on, ``version`` tells the
    adapter from one that has taken its place."""

    column: Column
    model: str
    shape: ModelShape
    form: BaseForm
    adapter_bytes: int
    version: str = ""


@dataclass(frozen=True)
class Device:
    """Bytes of the device, in all and free now."""

    kind: Literal["cuda", "cpu"]
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Place:
    """Where one column's weights are.  ``added_bytes``: what loading it takes; 0 where it is there or shared."""

    column: Column
    unit: Unit
    added_bytes: int
    shares: str = ""


@dataclass(frozen=True)
class Placement:
    """What loading the columns would do.  ``nearest``: the columns that do fit, where these do not."""

    places: tuple[Place, ...]
    resident: tuple[tuple[Unit, int], ...]
    evict: tuple[tuple[Unit, int], ...]
    working_bytes: int
    device: Device
    fits: bool
    nearest: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """All weights that would be held, and the room to work in."""
        held = sum(size for _, size in self.resident) - sum(size for _, size in self.evict)
        return held + sum(place.added_bytes for place in self.places) + self.working_bytes


def default_base(form: BaseForm, kind: UnitKind = "merged") -> MergeBase:
    """The base that an adapter was trained against; the original one where the merge is quantized again.

    Dequantized weights lie on the levels of NF4: a small update added to them is rounded away when they are quantized
    again, and the base is back.
    """
    return "dequantized" if form != "16bit" and kind == "merged" else "original"


def merge_bases(form: BaseForm) -> tuple[MergeBase, ...]:
    """The bases that an adapter can be merged onto: a base in 16 bit is its own original."""
    return ("original",) if form == "16bit" else get_args(MergeBase)


def place(wanted: Sequence[Wanted], resident: Mapping[Unit, int], device: Device) -> Placement:
    """Place the columns; ``resident``: bytes of the units in memory, least recently used first.

    A 16-bit base of its own is preferred; where there is no room, the base shares the adapter's 4-bit weights.  Units
    that no column needs are evicted, oldest first, as far as the room is wanted.
    """
    for share_base in (False, True):
        placement = _place(wanted, resident, device, share_base)
        if placement.fits:
            return placement
    return replace(placement, nearest=_nearest(wanted, resident, device))


def unit_of(wanted: Wanted, share_base: bool) -> Unit:
    """The weights a column answers from."""
    column = wanted.column
    if column.recipe in ("merged", "merged-4bit"):
        onto = column.onto or default_base(wanted.form, column.recipe)
        return Unit(column.recipe, wanted.model, column.source, onto, wanted.version)
    return Unit(wanted.form if column.recipe == "adapter" or share_base else "16bit", wanted.model)


def unit_bytes(unit: Unit, shape: ModelShape) -> int:
    """Bytes of a unit's weights, without adapters."""
    forms: dict[UnitKind, BaseForm] = {"merged": "16bit", "merged-4bit": "nf4"}
    return weight_bytes(shape, forms.get(unit.kind) or unit.kind)  # type: ignore[arg-type]


def says(placement: Placement) -> str:
    """One sentence: what will be done, or why it cannot be and what can."""
    need, device = placement.needed_bytes / GIB, placement.device
    if not placement.fits:
        nearest = f"choose {', '.join(placement.nearest)}" if placement.nearest else "nothing of it does; free memory"
        return (
            f"{', '.join(p.column.name for p in placement.places)} need {need:.1f} GiB and do not fit on a device of "
            f"{device.total_bytes / GIB:.1f} GiB with {device.free_bytes / GIB:.1f} GiB free; {nearest}"
        )
    shared = [f"{p.column.name} shares the weights of {p.shares}" for p in placement.places if p.shares]
    evicted = [f"frees {unit_name(unit)} ({size / GIB:.1f} GiB)" for unit, size in placement.evict]
    loads = [p.column.name for p in placement.places if p.added_bytes]
    doing = [f"loads {', '.join(loads)}"] if loads else ["everything is loaded"]
    return f"{'; '.join(doing + shared + evicted)}: {need:.1f} GiB of {device.total_bytes / GIB:.1f} GiB"


def unit_name(unit: Unit) -> str:
    """A unit in words."""
    bases = {"16bit": "16-bit base", "nf4": "4-bit base", "int8": "8-bit base"}
    names = bases | {"merged": "merged model", "merged-4bit": "merged 4-bit model"}
    onto = f" onto {unit.onto}" if unit.onto else ""
    return names.get(unit.kind, f"4-bit base ({unit.kind})") + (f" of {unit.adapter}" if unit.adapter else "") + onto


def _place(wanted: Sequence[Wanted], resident: Mapping[Unit, int], device: Device, share_base: bool) -> Placement:
    places = _places(wanted, resident, share_base)
    needed = {one.unit for one in places}
    working = _working_bytes(wanted, device)
    missing = sum(one.added_bytes for one in places) + working - device.free_bytes
    evict: list[tuple[Unit, int]] = []
    for unit, size in resident.items():
        if unit not in needed and missing > 0:
            evict.append((unit, size))
            missing -= size
    return Placement(places, tuple(resident.items()), tuple(evict), working, device, missing <= 0)


def _places(wanted: Sequence[Wanted], resident: Mapping[Unit, int], share_base: bool) -> tuple[Place, ...]:
    owners: dict[Unit, str] = {}
    adapters: set[tuple[Unit, str]] = set()
    found: dict[str, Place] = {}
    for one in sorted(wanted, key=lambda w: w.column.recipe == "base"):
        unit = unit_of(one, share_base)
        added = 0 if unit in resident or unit in owners else unit_bytes(unit, one.shape)
        key = (unit, one.column.source)
        if one.column.recipe == "adapter" and key not in adapters:
            added += one.adapter_bytes
            adapters.add(key)
        found[one.column.name] = Place(one.column, unit, added, owners.get(unit, ""))
        owners.setdefault(unit, one.column.name)
    return tuple(found[one.column.name] for one in wanted)


def _working_bytes(wanted: Sequence[Wanted], device: Device) -> int:
    caches = sum(CONTEXT_TOKENS * kv_bytes(one.shape) for one in wanted)
    prefill = max(round(_PREFILL_SHARE * weight_bytes(one.shape, "16bit")) for one in wanted)
    return caches + prefill + (CUDA_CONTEXT_BYTES if device.kind == "cuda" else 0)


def _nearest(wanted: Sequence[Wanted], resident: Mapping[Unit, int], device: Device) -> tuple[str, ...]:
    """The most columns that fit: as they are, then with merged models in 4 bit."""
    smaller = list({one.column.name: one for one in map(_in_4_bit, wanted)}.values())
    groups = (
        group
        for count in range(len(wanted), 0, -1)
        for pool in (wanted, smaller)
        for group in combinations(pool, count)
        if _place(group, resident, device, share_base=True).fits
    )
    return tuple(one.column.name for one in next(groups, ()))


def _in_4_bit(one: Wanted) -> Wanted:
    if one.column.recipe != "merged":
        return one
    name = one.column.name.replace("merged", "merged-4bit", 1)
    return replace(one, column=replace(one.column, recipe="merged-4bit", name=name))
