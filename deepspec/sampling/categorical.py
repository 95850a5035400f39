"""Categorical draws from injected uniforms, by a hierarchical inverse CDF.

The first uniform picks a block of ``BLOCK`` tokens by its mass, the second a token inside it, so that no
noise is needed per element. The block size is part of the random-stream contract.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from unnormalised weights ``[B, V]`` (>= 0) with uniforms ``[B, 2]``: int64 ``[B]``.

    A token of zero weight is never drawn; a row of zero mass gives the last token.
    """
    first, second = below_one(uniforms, weights.dtype).unbind(-1)
    if weights.shape[-1] <= BLOCK:
        return _invert(weights, second)
    padding = -weights.shape[-1] % BLOCK
    blocks = torch.nn.functional.pad(weights, (0, padding)).unflatten(-1, (-1, BLOCK))
    chosen = _invert(blocks.sum(dim=-1), first)
    inside = blocks.gather(1, chosen[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    return chosen * BLOCK + _invert(inside, second)


def below_one(uniforms: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms in ``dtype``, held below 1 where rounding would reach it."""
    return uniforms.to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds ``uniform`` of the total."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may put the point on the total: just below it, the last token with any weight is meant.
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)
