"""Memory by arithmetic over a model's shape: no weights, no device, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ModelError
from .records import Precision

BITS_PER_WEIGHT: dict[Precision, float] = {"fp32": 32, "bf16": 16, "fp16": 16, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}
"""Linear layers' bits per weight.  NF4: 4 bits, an 8-bit constant per block of 64, a 32-bit one per 256 blocks."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder's dimensions, as its config.json names them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelShape:
        """Read a transformers config; raises `ModelError` naming the field that is missing."""
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
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ModelError(
                f"config.json: {exc} is missing or no number; only Llama-like decoders can be planned"
            ) from exc

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the q, k, v, o, gate, up and down projections of all layers: what NF4 quantizes."""
        q = self.num_attention_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * self.kv_size)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def other_parameters(self) -> int:
        """Embeddings, head and norms: what stays in 16 bit."""
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + (2 * self.num_hidden_layers + 1) * self.hidden_size


def weight_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes of the base model's weights."""
    other = 4 if precision == "fp32" else 2
    return round(shape.linear_parameters * BITS_PER_WEIGHT[precision] / 8) + shape.other_parameters * other


def kv_bytes(shape: ModelShape) -> int:
    """Bytes that one token takes in the 16-bit key and value cache of all layers."""
    return 2 * shape.num_hidden_layers * shape.kv_size * 2


def activation_bytes(shape: ModelShape, tokens: int, *, checkpointing: bool) -> int:
    """Bytes of 16-bit activations kept for the backward pass of `tokens` tokens in one forward pass.

    Without checkpointing, a layer keeps the inputs of its norms (once more in fp32), of its projections and of the
    attention and gating products; with it, each layer keeps its input and one layer at a time is recomputed.
    """
    per_layer = 2 * (8 * shape.hidden_size + 2 * shape.kv_size + 4 * shape.intermediate_size) + 8 * shape.hidden_size
    kept = 2 * shape.hidden_size
    layers = shape.num_hidden_layers
    return tokens * (layers * kept + per_layer if checkpointing else layers * per_layer)
