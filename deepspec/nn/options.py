"""The options that describe a draft layer, and the layer itself; a size left out is the target's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepspec.context import TargetInfo
from deepspec.nn.attention import Attention
from deepspec.parts import PartConfig


class LayerConfig(PartConfig):
    """Options of a drafter whose layers are decoder layers."""

    layer: Literal["qwen3", "llama", "gemma4"] = Field(
        default="qwen3",
        description="whose layers the draft layers are like: llama has no norms of queries and keys, gemma4 "
        "norms values too and what attention and MLP give",
    )
    intermediate_size: int | None = Field(default=None, ge=1, description="width of the draft MLP")
    num_heads: int | None = Field(default=None, ge=1, description="attention heads")
    num_kv_heads: int | None = Field(default=None, ge=1, description="key/value heads")
    head_dim: int | None = Field(default=None, ge=2, multiple_of=2, description="numbers in a head")
    values_are_keys: bool = Field(
        default=False, description="whether values are what keys are before their norm, without a projection"
    )
    rope_theta: float | None = Field(default=None, gt=0, description="base of the rotary positions")
    rotary_share: float = Field(
        default=1.0, gt=0, le=1, description="share of a head's angles that turn, the fast ones"
    )
    rms_norm_eps: float | None = Field(default=None, gt=0, description="of the norms")

    def eps(self, info: TargetInfo) -> float:
        """Of the norms."""
        return info.rms_norm_eps if self.rms_norm_eps is None else self.rms_norm_eps

    def theta(self, info: TargetInfo) -> float:
        """Base of the rotary positions."""
        return info.rope_theta if self.rope_theta is None else self.rope_theta

    def width(self, info: TargetInfo) -> int:
        """Of the MLP."""
        return self.intermediate_size or info.intermediate_size

    def attention(self, info: TargetInfo, *, in_size: int | None = None) -> Attention:
        """A layer's attention; raises ConfigError for heads that do not fit each other."""
        is_gemma = self.layer == "gemma4"
        return Attention(
            info.hidden_size,
            self.num_heads or info.num_heads,
            self.num_kv_heads or info.num_kv_heads,
            self.head_dim or info.head_dim,
            self.eps(info),
            in_size=in_size,
            qk_norm=self.layer != "llama",
            v_norm=is_gemma,
            has_values=not self.values_are_keys,
            scale=1.0 if is_gemma else None,
        )
