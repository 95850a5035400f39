"""Rows of features as bytes: float32, bfloat16, 8 bits with a scale a row, 4 bits with a scale a group.

Integers are symmetric around 0: the largest magnitude of a row (or group) is 127 (or 7) steps, so an error
is at most half a step, 1/254 (or 1/14) of it. Scales are bfloat16, and values are divided by the scale as
stored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Numbers that share a scale at 4 bits.
GROUP = 64
_FLOATS = {32: torch.float32, 16: torch.bfloat16}
_SCALE_BYTES = 2


def row_bytes(bits: int, width: int) -> int:
    """Stored bytes of one row of ``width`` numbers, scales included."""
    if bits in _FLOATS:
        return width * bits // 8
    if bits == 8:
        return width + _SCALE_BYTES
    return -(-width // 2) + _SCALE_BYTES * -(-width // GROUP)


def encode(rows: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """Codes ``[..., C]`` of ``rows [..., D]``, and bfloat16 scales ``[..., S]``, None for floats."""
    if bits in _FLOATS:
        return rows.to(_FLOATS[bits]), None
    if bits == 8:
        codes, scales = _quantised(rows.float(), 127)
        return codes.to(torch.int8), scales
    width = rows.shape[-1]
    groups = pad(rows.float(), (0, -width % GROUP)).unflatten(-1, (-1, GROUP))
    codes, scales = _quantised(groups, 7)
    nibbles = (codes + 8).to(torch.uint8).flatten(-2)[..., : width + width % 2]
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4, scales[..., 0]


def decode(codes: Tensor, scales: Tensor | None, width: int, dtype: torch.dtype) -> Tensor:
    """Rows ``[..., width]`` of what :func:`encode` gave, in ``dtype``; what the codes are tells the bits."""
    if scales is None:
        return codes.to(dtype)
    if codes.dtype == torch.int8:
        return (codes.float() * scales.float()).to(dtype)
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).float() - 8
    factors = scales.float().repeat_interleave(GROUP, dim=-1)[..., : nibbles.shape[-1]]
    return (nibbles * factors)[..., :width].to(dtype)


def _quantised(values: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Whole numbers in [-steps, steps], as floats, and the scale ``[..., 1]`` of each last dimension."""
    scales = (values.abs().amax(dim=-1, keepdim=True) / steps).to(torch.bfloat16)
    divisors = torch.where(scales > 0, scales, 1).float()
    return (values / divisors).round().clamp(-steps, steps), scales
