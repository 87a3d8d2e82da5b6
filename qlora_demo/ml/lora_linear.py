"""LoRA from first principles.  For reading: training uses PEFT's layer, which a test proves to be the same function."""

from __future__ import annotations

import math

import torch
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer W with a trained update of rank r: ``y = W x + b + (alpha / r) B A dropout(x)``.

    A: (r, inputs), drawn as Kaiming does; B: (outputs, r), zero, so training starts at the frozen layer exactly.
    """

    def __init__(self, base: nn.Linear, r: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(r, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / r
        self.dropout = nn.Dropout(dropout)
        self.merged = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        if not self.merged:
            y = y + (self.dropout(x) @ self.A.T @ self.B.T) * self.scale
        return y

    def update(self) -> torch.Tensor:
        """What the adapter adds to W: (outputs, inputs), of rank r at most."""
        return self.scale * self.B @ self.A

    @torch.no_grad()
    def merge(self) -> None:
        """Put the update into W: from now on the layer costs what the frozen one costs."""
        self.base.weight += self.update()
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out again, up to rounding."""
        self.base.weight -= self.update()
        self.merged = False
