"""Which models are resident, in what precision, sharing which weights, and proof that each is what its column says."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from ..columns import title
from ..errors import NoRoom, WrongModel
from ..plan.placement import Device, Place, Placement, Unit, UnitKind, default_base, place, says, unit_name
from ..plan.planning import wanted
from ..records import AdapterUse, Column, Precision, Progress, Proof, Resident
from ..runs import RunStore
from ..settings import Settings
from ..sources import Origin, origin_of, weights_digest
from .device import device, free_and_total, sixteen_bit
from .fast_step import FastPath
from .generate import stop_ids, warm_up
from .load import load_base, load_tokenizer, quantize_nf4
from .merge import load_merged, where_to_merge
from .packed import pack
from .peak import give_back
from .weights import Weights, uses_weights

_PRECISIONS: dict[UnitKind, Precision] = {
    "nf4": "nf4",
    "nf4-single": "nf4",
    "fp4": "fp4",
    "fp4-single": "fp4",
    "int8": "int8",
    "merged-4bit": "nf4",
}
_USES: dict[str, AdapterUse] = {"adapter": "on", "merged": "merged", "merged-4bit": "merged"}


@dataclass(frozen=True)
class Loaded:
    """A column ready to answer: `activate` is entered around each of its passes.  ``stops``: the tokens that end its
    answers."""

    resident: Resident
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    adapter: Origin | None = None

    @property
    def model(self) -> Any:
        return self.weights.model

    @property
    def fast(self) -> FastPath:
        """How it decodes."""
        return self.weights.fast(self.adapter)

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Its adapter on, every other one off, and its own tokens end an answer, whatever else is on the weights."""
        self.model.generation_config.eos_token_id = list(self.stops) or None
        with self.weights.using(self.adapter):
            yield


class Variants:
    """The weights in memory, least recently used first, and the columns that were last asked for."""

    def __init__(self, settings: Settings, runs: RunStore) -> None:
        self.settings = settings
        self.runs = runs
        self.held: dict[Unit, Weights] = {}
        self.loaded: dict[str, Loaded] = {}
        self._tokenizers: dict[tuple[str, str], PreTrainedTokenizerBase] = {}
        self._seen: Mapping[Unit, tuple[int, frozenset[Origin]]] = {}

    def plan(self, columns: Sequence[Column]) -> Placement:
        """What loading these columns would do; nothing is loaded.  From any thread."""
        return self._plan(columns, {column.source: self.origin(column) for column in columns})

    def load(self, columns: Sequence[Column]) -> Iterator[Progress]:
        """Bring the columns into `loaded`, one per step; weights in memory are used again, others make room.

        Raises `NoRoom` where they cannot fit together, before anything is loaded or freed.
        """
        origins = {column.source: self.origin(column) for column in columns}
        placement = self._plan(columns, origins)
        if not placement.fits:
            raise NoRoom(f"variants: {says(placement)}")
        ordered = _in_loading_order(placement.places, origins)
        self.loaded = {}
        for unit, _ in placement.evict:
            self.free(unit)
        made: dict[str, Loaded] = {}
        for at, one in enumerate(ordered):
            yield Progress(f"loading {title(one.column)}", at / len(columns))
            made[one.column.name] = self._load(one, origins[one.column.source])
        self.loaded = {column.name: made[column.name] for column in columns}

    def build_a_piece(self) -> bool:
        """Do one bounded piece of what makes the loaded columns decode faster; whether there was any."""
        return any(one.fast.piece() for one in self.loaded.values())

    def free(self, unit: Unit) -> None:
        """Forget one unit's weights and give its memory back."""
        del self.held[unit]
        self._show()
        give_back()

    def release(self) -> None:
        """Forget every model and give the memory back."""
        self.loaded = {}
        self.held.clear()
        self._tokenizers.clear()
        self._show()
        give_back()

    def _plan(self, columns: Sequence[Column], origins: dict[str, Origin]) -> Placement:
        seen = self._seen
        attached = {origin for _, on in seen.values() for origin in on}
        found = [wanted(column, origins[column.source], attached) for column in columns]
        return place(found, {unit: size for unit, (size, _) in seen.items()}, device_now())

    def _show(self) -> None:
        """Let other threads see what is in memory now: they get no sight of it while it changes."""
        self._seen = {unit: (weights.bytes_with(None), weights.adapters) for unit, weights in self.held.items()}

    def origin(self, column: Column) -> Origin:
        """Where a column's adapter and base come from."""
        return origin_of(self.settings, self.runs, column)

    def _load(self, one: Place, origin: Origin) -> Loaded:
        adapter = origin if one.column.recipe == "adapter" else None
        weights = self._weights(one.unit, origin, adapter)
        self.held[one.unit] = weights
        self._show()
        if origin.digest and origin.digest != weights.digest:
            raise WrongModel(
                f"{one.column.name}: the files of {origin.model} are not those that {origin.name} was trained on "
                f"(digest {weights.digest}, trained on {origin.digest}); restore the model or train again"
            )
        if adapter:
            self._attach(adapter, one.unit)
        self._show()
        tokenizer = self._tokenizer(origin)
        loaded = Loaded(_resident(one, weights, adapter), weights, tokenizer, _stops(weights, tokenizer), adapter)
        prove(loaded)
        if not weights.warm:
            weights.warmed_up(warm_up(loaded.model, loaded.activate))
            loaded = replace(loaded, resident=_resident(one, weights, adapter))
        return loaded

    def _weights(self, unit: Unit, origin: Origin, adapter: Origin | None) -> Weights:
        """Those in memory, or else read: for an adapter that computes with them, ones that no pass has repacked."""
        held = self.held.get(unit)
        if held and adapter and adapter not in held.adapters and held.repacked and uses_weights(adapter):
            del held
            self.free(unit)
        return self.held.pop(unit, None) or _read(unit, origin)

    def _attach(self, origin: Origin, unit: Unit) -> None:
        """The adapter on a unit's weights, which are freed where that fails."""
        with ExitStack() as failed:
            failed.callback(self.free, unit)  # part of the adapter may be on them
            self.held[unit].attach(origin)
            failed.pop_all()

    def _tokenizer(self, origin: Origin) -> PreTrainedTokenizerBase:
        own = (origin.adapter / "tokenizer_config.json").is_file()
        source = (str(origin.adapter), origin.version) if own else (origin.model, "")
        if source not in self._tokenizers:
            self._tokenizers[source] = load_tokenizer(source[0])
        return self._tokenizers[source]


def _stops(weights: Weights, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """As in training, the base's own and what the tokenizer's template ends with."""
    weights.model.generation_config.eos_token_id = list(weights.stops)
    align_special_tokens(weights.model, tokenizer)
    return stop_ids(weights.model)


def prove(loaded: Loaded, fingerprint: str = "") -> Proof:
    """What the model in this column really is; raises `WrongModel` where that is not what the column says."""
    expected = loaded.resident
    with loaded.activate():
        precision, use = loaded.weights.precision, loaded.weights.adapter_use(loaded.adapter)
    if expected.adapter == "merged" and use == "none":
        use = "merged"
    if (precision, use) != (expected.precision, expected.adapter):
        raise WrongModel(
            f"{expected.column.name}: expected {expected.precision} weights with adapter {expected.adapter}, found "
            f"{precision} with adapter {use}; press Free memory and load it again"
        )
    return Proof(precision, use, fingerprint)


def device_now() -> Device:
    """The device's memory, now."""
    return Device("cuda" if device().type == "cuda" else "cpu", *free_and_total())


def _read(unit: Unit, origin: Origin) -> Weights:
    started = time.perf_counter()
    if unit.kind == "merged":
        model = load_merged(origin, unit.onto or default_base(origin.form, unit.kind))
    elif unit.kind == "merged-4bit":  # placed by its size in 4 bit; the merge before that takes more
        on = where_to_merge(unit.model)
        model = quantize_nf4(load_merged(origin, unit.onto or default_base(origin.form, unit.kind), on), device())
    else:
        model = load_base(unit.model, unit.kind, "inference")
    return Weights(pack(model), weights_digest(unit.model), time.perf_counter() - started)


def _in_loading_order(places: Sequence[Place], origins: Mapping[str, Origin]) -> list[Place]:
    """Merges first, which need room for their base as well; then adapters that may have their base read anew, which
    others then share; a base last, which may share what others brought."""
    order = ("merged", "merged-4bit", "adapter", "base")

    def when(one: Place) -> tuple[int, bool]:
        anew = one.column.recipe == "adapter" and uses_weights(origins[one.column.source])
        return order.index(one.column.recipe), not anew

    return sorted(places, key=when)


def _resident(one: Place, weights: Weights, adapter: Origin | None) -> Resident:
    column = one.column
    precision = _PRECISIONS.get(one.unit.kind) or sixteen_bit()
    off: AdapterUse = "off" if weights.adapters else "none"
    return Resident(
        column=column,
        title=title(column),
        precision=precision,
        adapter=_USES.get(column.recipe, off),
        model_bytes=weights.bytes_with(adapter),
        read_bytes=weights.read_bytes(adapter),
        shares=one.shares,
        note=_note(one),
        load_seconds=weights.load_seconds,
        warm_up_seconds=weights.warm_up_seconds,
    )


def _note(one: Place) -> str:
    if one.column.recipe == "base":
        return f"the weights of {one.shares} with the adapter off" if one.shares else "the model before training"
    if one.column.recipe == "adapter":
        return f"{unit_name(one.unit)} + LoRA"
    again = ", quantized to NF4 again" if one.column.recipe == "merged-4bit" else ""
    return f"merged onto the {one.unit.onto} base{again}"
