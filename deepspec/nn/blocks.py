"""The pieces of a decoder layer, small and without a model's habits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepspec.context import Rope
from deepspec.errors import ConfigError

#: By transformers' names. Gemma's ``gelu_pytorch_tanh`` is the tanh approximation.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight, or * (1 + weight), computed in float32 at least (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if unit_offset else torch.ones(size))
        self.eps, self.unit_offset = eps, unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        weight = self.weight.to(wide)
        weight = 1 + weight if self.unit_offset else weight
        return F.rms_norm(x.to(wide), weight.shape, weight, self.eps).to(x.dtype)

    @torch.no_grad()
    def multiply_by_(self, factors: Tensor | float) -> None:
        """Make the factors ``[size]`` what the norm multiplies by."""
        self.weight.copy_(torch.as_tensor(factors) - float(self.unit_offset))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), no biases: SwiGLU where the activation is ``silu``."""

    def __init__(self, size: int, intermediate_size: int, activation: str = "silu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"the target's MLP has the activation {activation!r}; a draft layer has "
                f"{', '.join(ACTIVATIONS)}"
            )
        self.gate_proj = nn.Linear(size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, size, bias=False)
        self._activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., size]``."""
        return self.down_proj(self._activation(self.gate_proj(x)) * self.up_proj(x))


def rotary(positions: Tensor, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[*positions, rope.width]`` of rotary embedding (RoFormer), angles in float32."""
    frequencies = torch.tensor(rope.frequencies, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * frequencies
    both = torch.cat([angles, angles], dim=-1)
    return (rope.scale * both.cos()).to(dtype), (rope.scale * both.sin()).to(dtype)


class RotaryTable:
    """Cosines and sines of positions 0 to ``length`` - 1, looked up while decoding."""

    def __init__(self, length: int, rope: Rope, *, dtype: torch.dtype, device: torch.device) -> None:
        self._cos, self._sin = rotary_table(torch.arange(length, device=device), rope, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The table ``[*positions, 1, width]`` of some positions."""
        return self._cos[positions], self._sin[positions]


def rotary_table(positions: Tensor, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`rotary` as it broadcasts over heads: ``[*positions, 1, width]``."""
    cos, sin = rotary(positions, rope, dtype)
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
