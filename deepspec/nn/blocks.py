"""The pieces of a Qwen3-style decoder layer, small and without a model's habits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 at least (Zhang & Sennrich 2019); or without a weight."""

    weight: nn.Parameter | None

    def __init__(self, size: int, eps: float, *, has_weight: bool = True) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(size)) if has_weight else None)
        self.size = size
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        precise = x if x.dtype in (torch.float32, torch.float64) else x.float()
        weight = None if self.weight is None else self.weight.to(precise.dtype)
        return nn.functional.rms_norm(precise, (self.size,), weight, self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases; with ``gelu`` its tanh form in the place of silu."""

    def __init__(self, size: int, intermediate_size: int, *, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.gate_proj = nn.Linear(size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., size]``."""
        gate = self.gate_proj(x)
        gate = nn.functional.gelu(gate, approximate="tanh") if self.gelu else nn.functional.silu(gate)
        return self.down_proj(gate * self.up_proj(x))


def rotary(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, *, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[*positions, head_dim]`` of rotary embedding (RoFormer), angles in float32.

    ``share`` is that of the angles that turn, the fast ones; the others are 0 (Gemma's "proportional").
    """
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    speeds = theta ** (-steps / head_dim)
    speeds[int(share * head_dim // 2) :] = 0.0
    angles = positions[..., None].float() * speeds
    both = torch.cat([angles, angles], dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)


class RotaryTable:
    """Cosines and sines of positions 0 to ``length`` - 1, looked up while decoding."""

    def __init__(
        self,
        length: int,
        head_dim: int,
        theta: float,
        *,
        dtype: torch.dtype,
        device: torch.device,
        share: float = 1.0,
    ) -> None:
        positions = torch.arange(length, device=device)
        self._cos, self._sin = rotary_table(positions, head_dim, theta, dtype, share=share)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The table ``[*positions, 1, head_dim]`` of some positions."""
        return self._cos[positions], self._sin[positions]


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, *, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """:func:`rotary` as it broadcasts over heads: ``[*positions, 1, head_dim]``."""
    cos, sin = rotary(positions, head_dim, theta, dtype, share=share)
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
