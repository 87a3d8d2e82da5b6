"""Memory by arithmetic over a model's shape: no weights, no device, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ModelError
from .records import BaseForm

_DOUBLE, _SINGLE = 4 + 8 / 64 + 32 / (64 * 256), 4 + 32 / 64
BITS_PER_WEIGHT: dict[BaseForm, float] = {
    "16bit": 16,
    "nf4": _DOUBLE,
    "nf4-single": _SINGLE,
    "fp4": _DOUBLE,
    "fp4-single": _SINGLE,
    "int8": 8,
}
"""Linear layers' bits per weight.  4-bit types: a 32-bit constant per block of 64; with double quantization an 8-bit
constant per block and a 32-bit one per 256 blocks.  int8's constant per row is counted with the leftovers."""


_TIED = (
    *("cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text"),
    *("granite_swa", "lfm2", "minicpm3", "recurrent_gemma", "smollm3", "starcoder2", "vaultgemma", "youtu"),
)
"""Types of model whose head is the embedding table where config.json does not say."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """A decoder's dimensions, as its config.json names them; ``qk_norm``: each head's queries and keys are normed;
    ``positions``: the longest row it was made for, 0 where that is not told; ``family``: its model_type."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    qk_norm: bool = False
    positions: int = 0
    family: str = "llama"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelShape:
        """Read a transformers config; raises `ModelError` naming the field that is missing, or tells of experts."""
        if experts := [name for name in _EXPERTS if config.get(name)]:
            raise ModelError(
                f"config.json: {experts[0]} is set; mixtures of experts can be neither planned nor trained"
            )
        family = str(config.get("model_type", ""))
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                vocab_size=int(config["vocab_size"]),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", family in _TIED)),
                qk_norm=family.startswith("qwen3"),
                positions=int(config.get("max_position_embeddings") or 0),
                family=family,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as exc:
            raise ModelError(
                f"config.json: {exc} is missing or no number; only Llama-like decoders can be planned"
            ) from exc

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the q, k, v, o, gate, up and down projections of all layers: what NF4 quantizes."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def other_parameters(self) -> int:
        """Embeddings, head and norms: what stays in 16 bit."""
        tables = 1 if self.tie_word_embeddings else 2
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        of_heads = 2 * self.num_hidden_layers * self.head_dim if self.qk_norm else 0
        return tables * self.vocab_size * self.hidden_size + norms + of_heads

    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of one layer's linear modules, by name."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.q_size, self.kv_size
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


def weight_bytes(shape: ModelShape, form: BaseForm) -> int:
    """Bytes of the base model's weights; what is not quantized is in 16 bit."""
    return round(shape.linear_parameters * BITS_PER_WEIGHT[form] / 8) + shape.other_parameters * 2


def kv_bytes(shape: ModelShape) -> int:
    """Bytes that one token takes in the 16-bit key and value cache of all layers."""
    return 2 * shape.num_hidden_layers * shape.kv_size * 2


def activation_bytes(shape: ModelShape, tokens: int, *, checkpointing: bool, fused: bool = False) -> int:
    """Bytes of 16-bit activations kept for the backward pass of `tokens` tokens in one forward pass.

    Without checkpointing, a layer keeps the inputs of its norms (once more in fp32), of its projections and of the
    attention and gating products; with it, each layer keeps its input and one layer at a time is recomputed.  A norm on
    queries and keys keeps them once more in 16 bit and once in fp32.  ``fused`` layer kernels keep 16 bit alone, and
    the gating's two inputs; the projections are frozen and keep nothing, so what adapters keep comes on top.
    """
    halves = 6 * shape.hidden_size + 2 * shape.q_size + 2 * shape.kv_size + 4 * shape.intermediate_size
    normed = 2 * shape.hidden_size * 4 + (shape.q_size + shape.kv_size) * 6 * shape.qk_norm
    if fused:
        halves = 2 * (shape.hidden_size + shape.q_size + shape.kv_size + shape.intermediate_size)
        normed = (shape.q_size + shape.kv_size) * 2 * shape.qk_norm
    per_layer = 2 * halves + normed
    kept = 2 * shape.hidden_size
    layers = shape.num_hidden_layers
    return tokens * (layers * kept + per_layer if checkpointing else layers * per_layer)
