"""The arithmetic that a training step needs, counted from the model's shape."""

from __future__ import annotations

from ..memory import ModelShape


def train_flops(shape: ModelShape, adapter_parameters: int, length: int) -> int:
    """Floating-point operations that one token of a row of `length` tokens needs, forward and backward.

    A frozen weight takes a product forward and one for the gradient of its input: 4 operations; an adapter's weight
    takes 6; attention's two products read half of the row on average and take 3 passes.  What checkpointing computes
    again is not needed, so it is not counted.
    """
    frozen = shape.linear_parameters + shape.vocab_size * shape.hidden_size
    attention = 2 * 2 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length // 2
    return 4 * frozen + 6 * adapter_parameters + 3 * attention
