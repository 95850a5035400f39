"""The options that describe a draft layer; what is left out is the target's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from deepspec.context import LayerTraits, Rope, TargetInfo
from deepspec.nn.config import LayerConfig
from deepspec.parts import PartConfig

#: What sets Gemma 4's full-attention layers apart.
GEMMA4 = LayerTraits(
    activation="gelu_pytorch_tanh", output_norms=True, value_norm=True, attention_scale=1.0, scaled=True
)


class LayerOptions(PartConfig):
    """Options of a drafter whose layers are decoder layers."""

    layer: Literal["target", "qwen3", "llama", "gemma4"] = Field(
        default="target",
        description="whose layers the draft layers are like; llama's have no norms of queries and keys, "
        "which all others have",
    )
    intermediate_size: int | None = Field(default=None, ge=1, description="width of the draft MLP")
    num_heads: int | None = Field(default=None, ge=1, description="attention heads")
    num_kv_heads: int | None = Field(default=None, ge=1, description="key/value heads")
    head_dim: int | None = Field(default=None, ge=2, multiple_of=2, description="numbers in a head")
    values_are_keys: bool = Field(
        default=False, description="for gemma4: whether one projection gives keys and values"
    )
    rope_theta: float | None = Field(default=None, gt=0, description="base of the rotary positions")
    rotary_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="with rope_theta: share of a head's angles that turn, fast ones",
    )
    rms_norm_eps: float | None = Field(default=None, gt=0, description="of the norms")

    def layer_config(self, info: TargetInfo) -> LayerConfig:
        """The layer for a target; raises ConfigError for heads that do not fit each other."""
        like = LayerConfig.of(
            info,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            qk_norm=self.layer != "llama",
        )
        traits = {
            "target": like.traits,
            "qwen3": LayerTraits(),
            "llama": LayerTraits(),
            "gemma4": replace(GEMMA4, keys_are_values=self.values_are_keys),
        }[self.layer]
        head_dim = self.head_dim or info.head_dim
        return replace(
            like,
            head_dim=head_dim,
            eps=info.rms_norm_eps if self.rms_norm_eps is None else self.rms_norm_eps,
            rope=like.rope if self.rope_theta is None else self._rope(self.rope_theta, head_dim),
            traits=traits,
        )

    def family(self, info: TargetInfo) -> str | None:
        """Whose layers these are by name: qwen3, llama or gemma4; None where they are none of those."""
        if self.layer != "target":
            return self.layer
        traits = replace(info.traits, unit_offset=False, keys_are_values=False, scaled=True)
        plain = replace(LayerTraits(), scaled=True)
        return "qwen3" if traits == plain else "gemma4" if traits == GEMMA4 else None

    def _rope(self, theta: float, width: int) -> Rope:
        speeds = Rope.plain(theta, width).frequencies
        turning = int(self.rotary_share * len(speeds))
        return Rope(theta, (*speeds[:turning], *[0.0] * (len(speeds) - turning)))
