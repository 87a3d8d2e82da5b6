"""Which weights fit together, as pure arithmetic: models and cards as people have them, and what is done when full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from qlora_demo.catalog import SHAPES
from qlora_demo.columns import parse_all
from qlora_demo.memory import weight_bytes
from qlora_demo.plan.placement import Device, Placement, Unit, Wanted, place, says
from qlora_demo.records import BaseForm
from qlora_demo.units import GIB

THREE = ("base", "adapter", "merged")
ADAPTER = 80 << 20


def wanted(model: str, names: Sequence[str] = THREE, method: BaseForm = "nf4") -> list[Wanted]:
    return [Wanted(column, model, SHAPES[model], method, ADAPTER) for column in parse_all(names, "run")]


def card(gib: float, kind: Literal["cuda", "cpu"] = "cuda") -> Device:
    return Device(kind, int(gib * GIB), int(gib * GIB))


def kinds(placement: Placement) -> dict[str, str]:
    return {one.column.name: one.unit.kind for one in placement.places}


PAIRS = [
    ("llama-2-7b", 24, "nf4 shared"),
    ("llama-2-7b", 48, "own"),
    ("llama-2-7b", 16, "refused"),
    ("llama-3.1-8b", 24, "nf4 shared"),
    ("llama-3.1-8b", 80, "own"),
    ("llama-3.1-8b", 16, "refused"),
    ("mistral-7b", 24, "nf4 shared"),
    ("qwen3-8b", 40, "own"),
    ("qwen3-4b", 16, "nf4 shared"),
    ("qwen3-0.6b", 8, "own"),
    ("smollm2-1.7b", 6, "nf4 shared"),
    ("smollm2-135m", 2, "own"),
]


@pytest.mark.parametrize(("model", "gib", "outcome"), PAIRS)
def test_three_columns_on_cards_that_people_have(model: str, gib: float, outcome: str) -> None:
    placement = place(wanted(model), {}, card(gib))
    assert placement.fits is (outcome != "refused")
    if placement.fits:
        assert kinds(placement)["base"] == ("nf4" if outcome == "nf4 shared" else "16bit")
        assert placement.needed_bytes <= gib * GIB


def test_a_7b_model_on_24_gb_shares_its_base_and_takes_about_19_gb() -> None:
    placement = place(wanted("llama-2-7b"), {}, card(24))
    base, adapter, merged = placement.places
    assert (base.unit, base.shares, base.added_bytes) == (adapter.unit, "adapter", 0)
    assert merged.added_bytes == weight_bytes(SHAPES["llama-2-7b"], "16bit")
    assert placement.needed_bytes / 1e9 == pytest.approx(19.5, abs=0.7)
    assert says(placement) == (
        f"loads adapter, merged; base shares the weights of adapter: {placement.needed_bytes / GIB:.1f} GiB of 24.0 GiB"
    )


def test_what_does_not_fit_is_refused_with_the_most_that_does() -> None:
    placement = place(wanted("llama-2-7b"), {}, card(16))
    assert placement.nearest == ("base", "adapter", "merged-4bit")
    assert says(placement).endswith(
        "and do not fit on a device of 16.0 GiB with 16.0 GiB free; choose base, adapter, merged-4bit"
    )
    assert place(wanted("llama-2-7b", placement.nearest), {}, card(16)).fits


def test_fewer_columns_are_offered_where_4_bit_is_not_enough() -> None:
    assert place(wanted("llama-2-7b"), {}, card(7)).nearest == ("base", "adapter")
    assert place(wanted("llama-2-7b"), {}, card(2)).nearest == ()
    assert "nothing of it does" in says(place(wanted("llama-2-7b"), {}, card(2)))


def test_two_merges_in_4_bit_have_names_of_their_own() -> None:
    names = ("merged:original", "merged:dequantized")
    assert place(wanted("llama-2-7b", names), {}, card(24)).nearest == (
        "merged-4bit:original",
        "merged-4bit:dequantized",
    )


def test_a_16_bit_run_shares_its_base_everywhere() -> None:
    placement = place(wanted("llama-2-7b", method="16bit"), {}, card(80))
    assert kinds(placement) == {"base": "16bit", "adapter": "16bit", "merged": "merged"}
    assert placement.places[0].shares == "adapter"


def test_resident_weights_cost_nothing_again() -> None:
    shape = SHAPES["llama-2-7b"]
    held = {Unit("nf4", "llama-2-7b"): weight_bytes(shape, "nf4")}
    first = place(wanted("llama-2-7b"), {}, card(24))
    again = place(wanted("llama-2-7b"), held, Device("cuda", 20 * GIB, 24 * GIB))
    assert again.places[1].added_bytes == ADAPTER
    assert again.needed_bytes == first.needed_bytes
    assert again.evict == ()


def test_the_oldest_weights_that_nobody_needs_go_first_and_no_more_than_needed() -> None:
    shape = SHAPES["qwen3-4b"]
    size = weight_bytes(shape, "16bit")
    old, newer = Unit("merged", "qwen3-4b", "run-1", "original"), Unit("merged", "qwen3-4b", "run-2", "original")
    placement = place(wanted("qwen3-4b", ("merged",)), {old: size, newer: size}, Device("cuda", 4 * GIB, 24 * GIB))
    assert placement.evict == ((old, size),)
    assert "frees merged model of run-1 onto original (7.5 GiB)" in says(placement)


def test_weights_that_are_needed_are_never_evicted() -> None:
    nf4 = Unit("nf4", "llama-2-7b")
    placement = place(wanted("llama-2-7b"), {nf4: 4 * GIB}, Device("cuda", 10 * GIB, 24 * GIB))
    assert not placement.fits
    assert placement.evict == ()


def test_two_runs_of_one_model_share_the_base() -> None:
    placement = place(wanted("llama-2-7b", ("adapter", "adapter@other")), {}, card(8))
    mine, theirs = placement.places
    assert (theirs.shares, theirs.added_bytes) == ("adapter", ADAPTER)
    assert mine.unit == theirs.unit
