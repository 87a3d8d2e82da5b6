"""Whether another pass of a model says the same, measured by how far the model's own rounding moves its logits."""

from __future__ import annotations

import torch

_TIMES, _LEAST, _MOST = 3.0, 0.01, 0.2
"""How far a step's logits may be from the eager pass's: so many times as far as two eager passes are from each other,
token by token and all tokens at once, within bounds.  A compiled layer rounds to bf16 at other places than an eager
one, and how far that moves the logits is the model's own: 1% in one, 5% in another."""
_BEHIND = 2.5
"""Of the same, by which another token than the step's own may be the likeliest: single logits are further off."""


def distance(eager: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of what logits differ by, as a share of their spread, at the position where it is most; both
    (positions, vocabulary)."""
    eager, other = eager.float(), other.float()
    apart = (other - eager).square().mean(dim=-1) / eager.var(dim=-1)
    return apart.max().sqrt().item()


def tolerance(eager: torch.Tensor, again: torch.Tensor) -> float:
    """How far a step may be from the eager pass, whose logits another eager pass gave `again`."""
    return min(max(_TIMES * distance(eager, again), _LEAST), _MOST)


def difference(eager: torch.Tensor, fast: torch.Tensor, allowed: float) -> str:
    """Why a step's logits are not those of the eager pass, or nothing; both (positions, vocabulary).

    They must be as near as is allowed and name the same most likely token, but where the eager pass itself has the two
    tokens close together.
    """
    if not (far := distance(eager, fast)) <= allowed:
        return (
            f"the compiled step's logits differ from the eager pass's by {far:.1%} of their spread, where rounding "
            f"allows {allowed:.1%}"
        )
    eager = eager.float()
    behind = eager.amax(dim=-1) - eager.gather(-1, fast.argmax(dim=-1, keepdim=True))[:, 0]
    if (behind > _BEHIND * allowed * eager.std(dim=-1)).any():
        return "the compiled step's most likely token is another than the eager pass's"
    return ""
