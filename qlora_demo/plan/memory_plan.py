"""The memory a training run takes, itemised: arithmetic over a model's shape and a config, nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..config import ATTENTION_MODULES, TrainConfig, target_names
from ..memory import BITS_PER_WEIGHT, ModelShape, activation_bytes
from ..units import GIB, MIB

Way = Literal["qlora", "lora", "lora-8bit", "full"]
Kind = Literal["cuda", "cpu"]
On = Literal["cuda", "cuda-fp16", "cpu"]
"""What trains: a GPU, one without bf16, where every adapter is in fp32, or a processor."""
Kernels = Literal["fused", "triton", "torch"]
"""What computes on a GPU: Liger's kernels in the layers and Triton's in the loss, the latter alone, or neither."""
_LOGITS_TILE = (4096, 32768)
"""Tokens and vocabulary entries that TRL's fused head scores at a time."""
_TILE_BYTES: dict[Kernels, int] = {"fused": 2, "triton": 2, "torch": 31}
"""Of each score, at most at once: the score, which Triton's kernel overwrites with its gradient; torch makes seven fp32
copies on the way back, a mask, and the score itself (TRL's `_backward_tile`)."""
_HIDDEN_BYTES = 4 + 2 + 2
"""Of each of the head's inputs on a GPU: its gradient in fp32, and the input and its gradient in 16 bit."""
_DROPPED_BYTES: dict[Kind, int] = {"cuda": 2 + 1, "cpu": 2 + 2}
"""Of each input of an adapter under dropout: the value that is left, and the mask."""
_WEIGHED_BYTES = 2 + 2
"""Of each output of a layer under DoRA: the base's and the adapter's, for the gradient of the magnitude."""
_DEQUANTIZED_BYTES, _WIDENED_BYTES = 2, 4
"""Of each weight of the layer at work: of quantized ones in 16 bit, and on most processors again in fp32, in which
frozen layers multiply."""
_OVERHEAD: dict[Kind, tuple[int, str]] = {
    "cuda": (3 * GIB // 4, "CUDA context, cuBLAS workspace, the allocator's slack"),
    "cpu": (680 * MIB, "Python, torch and the other libraries in the process, measured"),
}
_PAGED_FROM = 100_000
_MARGIN = 0.05
_OPTIMIZER_BYTES = {"adamw_8bit": 2.0, "paged_adamw_8bit": 2.0, "paged_adamw_32bit": 8.0}
"""Of state per trained parameter; torch's AdamW keeps two values in the parameter's own type."""


@dataclass(frozen=True)
class MemoryItem:
    """One part of the plan, and how it is reckoned."""

    name: str
    bytes: int
    how: str


@dataclass(frozen=True)
class MemoryPlan:
    """What one way of training takes; bytes.  ``kernels`` None: of a processor."""

    way: Way
    items: tuple[MemoryItem, ...]
    trainable_parameters: int
    all_parameters: int
    checkpointing: bool
    kernels: Kernels | None = None

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items)


def plan(
    shape: ModelShape,
    config: TrainConfig,
    on: On,
    *,
    checkpointing: bool,
    kernels: Kernels = "triton",
    full: bool = False,
) -> MemoryPlan:
    """The itemised plan of a config; ``kernels`` are a GPU's; ``full`` trains every weight instead, in 16 bit with fp32
    AdamW state."""
    kind: Kind = "cpu" if on == "cpu" else "cuda"
    wide = on == "cuda-fp16" or config.method == "lora"
    base = shape.linear_parameters + shape.other_parameters
    trained = base if full else adapter_parameters(shape, config)
    passing = _passing(shape, config, kind, checkpointing=checkpointing, kernels=kernels, full=full)
    if not full:
        passing.append(_adapted(shape, config, kind, checkpointing=checkpointing, kernels=kernels, wide=wide))
    freed = _freed(shape, config, passing, checkpointing)
    items = [
        *_weights(shape, config, kind, full),
        *_trained(config, kind, trained, freed, full=full, wide=wide),
        *passing,
    ]
    overhead, how = _OVERHEAD[kind]
    items.append(MemoryItem("fixed overhead", overhead, how))
    margin = round(_MARGIN * sum(item.bytes for item in items))
    items.append(MemoryItem("margin", margin, f"{_MARGIN:.0%}: fragmentation, and what is not reckoned"))
    way: Way = "full" if full else config.method
    everything = base if full else base + trained
    return MemoryPlan(way, tuple(items), trained, everything, checkpointing, None if kind == "cpu" else kernels)


def adapter_parameters(shape: ModelShape, config: TrainConfig) -> int:
    """Parameters of A and B, and of DoRA's magnitudes, on the targeted layers."""
    return sum(
        _times(name, shape, config) * (config.r * (inputs + outputs) + config.use_dora * outputs)
        for name, (inputs, outputs) in _targets(shape, config).items()
    )


def optimizer_of(config: TrainConfig, kind: Kind) -> str:
    """The optimizer's name in transformers."""
    if config.optim != "auto":
        return config.optim
    return "paged_adamw_32bit" if kind == "cuda" else "adamw_torch"


def paged_state_bytes(shape: ModelShape, config: TrainConfig, kind: Kind) -> int:
    """Bytes of optimizer state that can move to the host: bitsandbytes pages what belongs to a matrix of 100,000 values
    or more."""
    name = optimizer_of(config, kind)
    if kind != "cuda" or not name.startswith("paged"):
        return 0
    matrices = [config.r * size for sizes in _targets(shape, config).values() for size in sizes]
    paged = sum(size for size in matrices if size >= _PAGED_FROM)
    return round(shape.num_hidden_layers * paged * _OPTIMIZER_BYTES[name])


def parse_memory(text: str) -> int:
    """``24GB`` or ``24 GiB`` -> bytes; cards are sold in GiB, whatever their boxes say.  Raises ValueError."""
    number = text.strip().upper().removesuffix("B").removesuffix("I").removesuffix("G")
    size = float(number)
    if not 0 < size < 100_000:
        raise ValueError(text)
    return round(size * GIB)


def _weights(shape: ModelShape, config: TrainConfig, kind: Kind, full: bool) -> list[MemoryItem]:
    form = "16bit" if full else config.base_form
    linear, bits = shape.linear_parameters, BITS_PER_WEIGHT[form]
    left = MemoryItem(
        "16-bit leftovers", 2 * shape.other_parameters, f"{shape.other_parameters:,} of embeddings, head and norms"
    )
    if form == "16bit":
        return [MemoryItem("16-bit weights", 2 * linear, f"{linear:,} x 2 bytes"), left]
    width = 8 if form == "int8" else 4
    parts = [MemoryItem(f"{width}-bit weights", linear * width // 8, f"{linear:,} x {width} bits")]
    if bits > width:
        parts.append(
            MemoryItem(
                "quantization constants", round(linear * (bits - width) / 8), f"{bits - width:.3f} bits a weight"
            )
        )
    largest = max(inputs * outputs for inputs, outputs in shape.linear_sizes().values())
    each = _DEQUANTIZED_BYTES + _WIDENED_BYTES * (kind == "cpu" and width == 4)
    how = f"{largest:,} x {each} bytes, while it is used"
    return [*parts, left, MemoryItem("one layer dequantized", each * largest, how)]


def _freed(shape: ModelShape, config: TrainConfig, passing: list[MemoryItem], checkpointing: bool) -> int:
    """What is gone of the activations when all gradients are there; with accumulation they are there from the start."""
    if config.gradient_accumulation_steps > 1:
        return 0
    if checkpointing:
        return 2 * config.per_device_train_batch_size * config.max_length * shape.num_hidden_layers * shape.hidden_size
    return sum(item.bytes for item in passing if item.name != "logits")


def _trained(config: TrainConfig, kind: Kind, trained: int, freed: int, *, full: bool, wide: bool) -> list[MemoryItem]:
    """What is trained, ``wide`` in fp32, and what that needs; by the time all gradients are there, so much of the
    activations is ``freed``."""
    width = 4 if wide and not full else 2
    name = optimizer_of(config, kind)
    state = 8.0 if full else _OPTIMIZER_BYTES.get(name, 2.0 * width)
    adapters = [] if full else [MemoryItem("adapters", width * trained, f"{trained:,} x {width} bytes")]
    how = f"{trained:,} x {width} bytes" + " less the activations that are freed by then" * bool(freed)
    return [
        *adapters,
        MemoryItem("gradients", max(0, width * trained - freed), how),
        MemoryItem("optimizer state", round(state * trained), f"{trained:,} x {state:g} bytes, {name}"),
    ]


def _passing(
    shape: ModelShape, config: TrainConfig, kind: Kind, *, checkpointing: bool, kernels: Kernels, full: bool
) -> list[MemoryItem]:
    tokens = config.per_device_train_batch_size * config.max_length
    fused = kernels == "fused" and not full
    kept = activation_bytes(shape, tokens, checkpointing=checkpointing, fused=fused)
    how = f"{tokens:,} tokens, {'recomputed layer by layer' if checkpointing else 'all layers kept'}"
    how += ", fused kernels" * fused
    scores = _scores(shape, tokens, kind, "torch" if kind == "cpu" else kernels)
    if kind == "cuda" and checkpointing:
        passing = 2 * tokens * (shape.intermediate_size + 2 * shape.hidden_size)
        one_layer = activation_bytes(replace(shape, num_hidden_layers=1), tokens, checkpointing=False, fused=fused)
        beyond = max(0, scores.bytes - one_layer - passing)
        scores = MemoryItem("logits", beyond, f"{scores.how}, beyond the recomputed layer, which comes after it")
        kept, how = kept + passing, f"{how}, with the gradients on their way through one"
    return [MemoryItem("activations", kept, how), scores]


def _scores(shape: ModelShape, tokens: int, kind: Kind, kernels: Kernels) -> MemoryItem:
    """What the head and its loss take."""
    rows, entries = min(tokens, _LOGITS_TILE[0]), min(shape.vocab_size, _LOGITS_TILE[1])
    tile, how = _TILE_BYTES[kernels], f"a tile of the fused head, {_TILE_BYTES[kernels]} bytes a score"
    if kind == "cuda":
        around = tokens * shape.hidden_size * _HIDDEN_BYTES
        return MemoryItem("logits", rows * entries * tile + around, f"{how}, and its inputs")
    widened = entries * (6 * rows + 4 * shape.hidden_size)
    if widened > rows * entries * tile:
        return MemoryItem("logits", widened, "a tile of the fused head, and its part of the head's weights in fp32")
    return MemoryItem("logits", rows * entries * tile, how)


def _adapted(
    shape: ModelShape, config: TrainConfig, kind: Kind, *, checkpointing: bool, kernels: Kernels, wide: bool
) -> MemoryItem:
    """What the adapters keep for the backward pass beside what their layers keep anyway."""
    targets = _targets(shape, config)
    dropped = _DROPPED_BYTES[kind] if config.lora_dropout else 0
    inputs = dropped * sum(given for given, _ in targets.values())
    how = f"{dropped} bytes of each adapted layer's input, dropped out, and 2 r" if dropped else "2 r of each layer"
    if kernels == "fused" and kind == "cuda" and not dropped:
        inputs = 2 * _inputs_kept(shape, config, wide)
        how = "each input of adapted layers, and 2 r of each"
    magnitudes = _WEIGHED_BYTES * sum(outputs for _, outputs in targets.values()) if config.use_dora else 0
    layers = 1 if checkpointing else shape.num_hidden_layers
    tokens = config.per_device_train_batch_size * config.max_length
    per_token = inputs + magnitudes + 2 * config.r * len(targets)
    copies = _copies(config, targets, wide)
    how += ", DoRA's outputs" * config.use_dora + ", and 16-bit copies of weights" * bool(copies)
    return MemoryItem("adapters' activations", layers * (tokens * per_token + copies), how)


def _copies(config: TrainConfig, targets: dict[str, tuple[int, int]], wide: bool) -> int:
    """Of one layer's weights in 16 bit that are kept for the backward pass: of adapters in fp32, and of quantized
    layers under DoRA, which with dropout multiplies by them once more."""
    adapters = wide * config.r * sum(inputs + outputs for inputs, outputs in targets.values())
    multiplied_again = config.method != "lora" and config.use_dora and config.lora_dropout
    return 2 * (adapters + (sum(inputs * outputs for inputs, outputs in targets.values()) if multiplied_again else 0))


def _inputs_kept(shape: ModelShape, config: TrainConfig, wide: bool) -> int:
    """Values that fused layers keep for adapters alone.  Adapters in fp32 have a copy of their input each; others share
    it: q, k and v one, gate and up another, and o's is kept by the attention."""
    targets = _targets(shape, config)
    if wide:
        return sum(given for given, _ in targets.values())
    shared = [
        (shape.hidden_size, {"q_proj", "k_proj", "v_proj"}),
        (shape.hidden_size, {"gate_proj", "up_proj"}),
        (shape.intermediate_size, {"down_proj"}),
    ]
    return sum(size for size, names in shared if names & targets.keys())


def _targets(shape: ModelShape, config: TrainConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of one layer's adapted modules."""
    chosen = target_names(config.target_modules)
    names = None if chosen is None else {name.rpartition(".")[2] for name in chosen}
    return {name: size for name, size in shape.linear_sizes().items() if names is None or name in names}


def _times(name: str, shape: ModelShape, config: TrainConfig) -> int:
    """In how many layers a module is adapted: a target may be named with its layer's number."""
    block = "self_attn" if name in ATTENTION_MODULES else "mlp"
    full = [f".model.layers.{at}.{block}.{name}" for at in range(shape.num_hidden_layers)]
    wanted = target_names(config.target_modules) or (name,)
    return sum(any(one.endswith(f".{target}") for target in wanted) for one in full)
