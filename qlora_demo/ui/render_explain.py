"""How QLoRA works, from measured figures -> HTML.  Imports no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from ..config import TrainConfig
from ..plan.alternatives import Comparison
from ..plan.memory_plan import MemoryPlan
from ..results import plots, tables
from ..units import memory, percent
from .render_training import KERNELS, WAYS

Facts = Mapping[str, Any]


def update_size(layer: tuple[int, int], r: int, whole: MemoryPlan, trained: Sequence[MemoryPlan]) -> str:
    """What a LoRA update of a layer of (inputs, outputs) holds, against the layer itself, its bias included; ``whole``
    and ``trained``: how a GPU trains either."""
    inputs, outputs = layer
    all_of_it, few = inputs * outputs + outputs, r * (inputs + outputs)
    ways = " or ".join(_beside(plan, few) for plan in trained)
    return (
        f"<p>A layer of {inputs:,} x {outputs:,} has {all_of_it:,} parameters with its bias. An update of rank {r} is "
        f"two thin matrices, A of {r} x {inputs:,} and B of {outputs:,} x {r}: <b>{few:,} parameters, "
        f"{percent(few / all_of_it)}</b>. Gradients and optimizer state on a GPU, as the memory plan computes them: "
        f"for the whole layer {_beside(whole, all_of_it)}; for the update {ways}.</p>"
    )


def held_by_rank(r: int, looked: Facts) -> str:
    """What share of an update that was looked into a rank could hold; ``looked``: its ``run``, ``layer``, and
    ``energy``, the shares that its first 1, 2, ... directions hold together."""
    energy = looked["energy"]
    return (
        f"<p><small>Of the update that run {escape(looked['run'])} learned for {escape(looked['layer'])} with rank "
        f"{len(energy)}, rank {r} could hold <b>{percent(energy[min(r, len(energy)) - 1])}</b> of the energy."
        "</small></p>"
    )


def _beside(plan: MemoryPlan, parameters: int) -> str:
    """What so many parameters take beside themselves while they are trained as a plan does."""
    sizes = {item.name: item.bytes for item in plan.items}
    each = [sizes[name] / plan.trainable_parameters for name in ("gradients", "optimizer state")]
    return f"{memory(sum(each) * parameters)} with {WAYS[plan.way]} ({each[0]:g} + {each[1]:g} bytes per parameter)"


_HELD = {"16bit": "16-bit", "int8": "8-bit", "nf4": "NF4", "fp4": "FP4"}
LOOK = '<p class="empty">Not computed yet. Choose a layer, then press <b>Look into this layer</b>.</p>'
"""Stands where one layer's figures will."""
UNTRAINED = '<p class="empty">No run is finished yet. Once one is, what it changed in this layer is shown here.</p>'


def spectrum(found: Facts) -> str:
    """A trained update's singular values: how much of its rank it uses."""
    points = {"singular values": [(float(at), value) for at, value in enumerate(found["values"], 1)]}
    plot = plots.lines("Singular values of a trained update", "index", "singular value", points)
    kept = tuple((str(rank), percent(share)) for rank, share in found["kept"].items())
    table = tables.html(tables.Table(("rank", "share of the update's energy it could hold"), kept))
    return (
        f"<p>Of {found['rank']} directions, the first {found['rank_for_90']} hold 90% of the update's energy and the "
        f"first {found['rank_for_99']} hold 99%. Its norm is {found['norm']:.3g}. The slider for r above shows what "
        f"share any rank could hold.</p>{plot}{table}"
    )


def nf4(facts: Facts) -> str:
    """The levels, the layer's weights on them, and how near each 4-bit type comes."""
    stored, made = facts["levels"]["stored"], facts["levels"]["from_quantiles"]
    off = max(abs(ours - theirs) for ours, theirs in zip(stored, made, strict=True))
    histogram = facts["histogram"]
    weights = {"weights": list(zip(histogram["at"], histogram["share"], strict=True))}
    used = {f"{level:.2f}": {"share": 100 * share} for level, share in zip(stored, facts["level_share"], strict=True)}
    errors = tuple((name, percent(value)) for name, value in facts["errors"].items())
    return (
        f"<p>The 16 levels are quantiles of a normal distribution, meant for normally distributed weights. Computed "
        f"here from the normal distribution, they agree with the library's to within {off:.1g}.</p>"
        + plots.lines(f"Weights of {facts['name']}, each block of 64 scaled to ±1", "value", "share", weights)
        + plots.bars("How often each level is used", "% of the weights", used, x_label="level")
        + tables.html(tables.Table(("4-bit type", "RMS error relative to the weights' RMS"), errors))
    )


def bits(facts: Facts) -> str:
    """What double quantization saves, computed and as stored."""
    rows = tuple((name, f"{value:.4f}") for name, value in facts["bits"].items())
    return (
        "<p>Each block of 64 weights has one 32-bit constant: half a bit per weight. Double quantization stores those "
        "constants in 8 bits, with one 32-bit constant for every 256 of them.</p>"
        + tables.html(tables.Table(("bits per weight", ""), rows))
    )


def one_pass(facts: Facts) -> str:
    """What a forward and a backward pass through a 4-bit layer hold, and what training changes."""
    found, trained = facts["memory"], facts["training"]
    rows = (
        ("the layer as stored", memory(found["stored"])),
        ("the layer in 16 bit", memory(found["in_16_bit"])),
        ("peak of new memory in the forward pass", memory(found["forward_peak"])),
        ("peak of new memory in the backward pass", memory(found["backward_peak"])),
    )
    gradients = ", ".join(name for name, there in trained["gradients"].items() if there)
    without = ", ".join(name for name, there in trained["gradients"].items() if not there)
    same, reached = trained["frozen_before"] == trained["frozen_after"], trained["input_gradient"]
    through = f"is {reached:.2g} (RMS): it came through the frozen weights" if reached else "is zero"
    return (
        f"<p>The stored weights are dequantized to 16 bit for the matrix product and then discarded, once in the "
        f"forward pass and again in the backward pass ({found['tokens']} tokens, measured on {found['on']}).</p>"
        + tables.html(tables.Table(("", "memory"), rows))
        + f"<p>After {trained['steps']} steps of AdamW, the checksum of the frozen 4-bit weights and their constants "
        f"is {escape(trained['frozen_after'])}; before, it was {escape(trained['frozen_before'])}: "
        f"<b>{'unchanged' if same else 'changed'}</b>. Gradients exist for {escape(gradients)} and not for "
        f"{escape(without)}. In the first step, B is still zero, so the update passes no gradient on; the gradient at "
        f"the layer's input {through}.</p>"
    )


def merging(fidelity: Facts | None) -> str:
    """Why one does not merge into 4-bit weights: what it does to the distributions, as this run's fidelity measured."""
    if not fidelity or not fidelity.get("merges"):
        return '<p class="empty">Measure <b>Merge fidelity</b> on the Evaluate tab; what it finds is shown here.</p>'
    return (
        "<p>A merge adds the update to the weights, so a token needs no extra matrix products. Rounding the sum to the "
        "16 levels of each block again can erase an update that is smaller than the steps between the levels. Measured "
        "on this run:</p>"
        + tables.html(tables.fidelity(fidelity))
        + f"<p><b>{escape(fidelity.get('sentence', ''))}</b></p>"
    )


def rounding(found: Facts) -> str:
    """What is left of a trained update once it is written into the layer."""
    rows = tuple(
        (f"merged {name}", percent(one["kept"]), percent(one["error"]), percent(one["output"]))
        for name, one in found["merged"].items()
    )
    head = (
        "this layer and its update",
        "share of the update kept",
        "error in the weights",
        "error in the layer's output",
    )
    held = _HELD[found["form"].partition("-")[0]]
    original = "" if found["form"] == "16bit" else ", and into the original one"
    return (
        f"<p>The update, merged into the {held} layer it was trained on{original}: how much of it the merged "
        "weights still hold, and the error relative to the update itself. Rounding a 4-bit layer again can erase a "
        "small update; quantizing the original, a 16-bit or an 8-bit layer to 4 bits keeps it on average and adds "
        "noise that may exceed it.</p>"
        + tables.html(tables.Table(head, rows))
        + "<p>What merging costs and gains compared with the layer in NF4, each stored as the chat on a CPU stores it: "
        "its memory, and the time of one token's pass through it, the median of passes just taken in turn.</p>"
        + tables.html(tables.Table(("one token through this layer", "memory", "time"), _of_a_token(found["token"])))
    )


def _of_a_token(ways: Facts) -> tuple[tuple[str, ...], ...]:
    return tuple((name, memory(one["bytes"]), f"{1e6 * one['seconds']:,.0f} µs") for name, one in ways.items())


def paging(paged: int, kept: MemoryPlan, recomputed: MemoryPlan) -> str:
    """What pages to the host, and what is computed again, of the plan that the ledger shows, without checkpointing and
    with it; ``paged``: the bytes of optimizer state that can page."""
    sizes = [{item.name: item for item in one.items} for one in (kept, recomputed)]
    state, before, after = sizes[0]["optimizer state"], *(one["activations"].bytes for one in sizes)
    return (
        f"<p>Paged optimizers keep AdamW's two values per trained parameter in memory that moves to the host when the "
        f"GPU is full and back for the step: a peak of the activations then slows a step down instead of ending the "
        f"run. bitsandbytes pages the state of matrices with 100,000 values or more: of this plan's "
        f"{memory(state.bytes)} ({escape(state.how)}) that is <b>{memory(paged) if paged else 'nothing'}</b>.</p>"
        f"<p>Checkpointing keeps only each layer's input and recomputes the rest in the backward pass, which takes "
        f"longer: {memory(after)} of activations instead of {memory(before)} here, and "
        f"{memory(recomputed.total_bytes)} in total instead of {memory(kept.total_bytes)}.</p>"
    )


def ledger(found: Comparison, config: TrainConfig) -> str:
    """A shape by every way of training, part by part, and what it is computed for."""
    plans: tuple[MemoryPlan, ...] = (found.chosen, *found.others)
    in_turn = zip_longest(*(plan.items for plan in plans))
    names = list(dict.fromkeys(item.name for parts in in_turn for item in parts if item))
    sizes = [{item.name: item.bytes for item in plan.items} for plan in plans]
    rows = [(name, *(memory(size[name]) if name in size else "–" for size in sizes)) for name in names]
    rows.append(("total", *(memory(plan.total_bytes) for plan in plans)))
    rows.append(("fits", *("yes" if plan.total_bytes <= found.device_bytes else "no" for plan in plans)))
    table = tables.Table(("part", *(plan.way for plan in plans)), tuple(rows))
    return _computed_for(config, found.chosen) + tables.html(table)


def _computed_for(config: TrainConfig, plan: MemoryPlan) -> str:
    activations = "recomputed layer by layer (checkpointing)" if plan.checkpointing else "kept, without checkpointing"
    but = ", except for the layers of full fine-tuning" * (plan.kernels == "fused")
    kernels = f" {KERNELS[plan.kernels]}{but}." if plan.kernels else ""
    gradients = next(item.how for item in plan.items if item.name == "gradients")
    return (
        f"<p>For batches of {config.per_device_train_batch_size} rows of {config.max_length:,} tokens; adapters of "
        f"rank {config.r} on {escape(config.target_modules)}; activations {activations}; "
        f"gradients of {escape(gradients)}.{kernels}</p>"
    )
