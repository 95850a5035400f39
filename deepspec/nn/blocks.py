"""The pieces of a Qwen3-style decoder layer, small and without a model's habits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 at least (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if x.dtype in (torch.float32, torch.float64):
            return nn.functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., size]``."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def rotary(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[*positions, head_dim]`` of rotary embedding (RoFormer), angles in float32."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-steps / head_dim)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)


class RotaryTable:
    """Cosines and sines of positions 0 to ``length`` - 1, looked up while decoding."""

    def __init__(
        self, length: int, head_dim: int, theta: float, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._cos, self._sin = rotary_table(torch.arange(length, device=device), head_dim, theta, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The table ``[*positions, 1, head_dim]`` of some positions."""
        return self._cos[positions], self._sin[positions]


def rotary_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`rotary` as it broadcasts over heads: ``[*positions, 1, head_dim]``."""
    cos, sin = rotary(positions, head_dim, theta, dtype)
    return cos[..., None, :], sin[..., None, :]


def apply_rotary(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate ``x``, where the table is narrower its first numbers; cosines and sines broadcast."""
    cos, sin = table
    if (width := cos.shape[-1]) < x.shape[-1]:
        return torch.cat([apply_rotary(x[..., :width], table), x[..., width:]], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the bool tensor ``seen`` is true, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@torch.no_grad()
def pass_through_(weight: Tensor) -> None:
    """Make ``weight [H, K*H]`` close to handing on the last of K inputs, which learns faster than noise."""
    size = len(weight)
    weight.mul_(0.1)
    weight[:, -size:] += torch.eye(size)
