"""What a draft layer is made of: the target's family by default, so that one class follows all families."""

from __future__ import annotations

from dataclasses import dataclass

from deepspec.context import LayerTraits, Rope, TargetInfo
from deepspec.errors import ConfigError


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer's sizes and kind.

    Attributes:
        rope: rotary positions. eps: of the norms. traits: see :class:`deepspec.interfaces.LayerTraits`.
        qk_norm: whether queries and keys are normed.
        gated: whether ``q_proj`` also gives each head's gate, whose sigmoid scales the head's output.

    Raises ConfigError for heads that cannot share the key/value heads, and for positions that no head holds.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope: Rope
    traits: LayerTraits
    qk_norm: bool = True
    gated: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads is {self.num_heads} and num_kv_heads {self.num_kv_heads} (left out, they are the "
                "target's); give a num_heads that is a multiple of num_kv_heads"
            )
        if not 2 <= self.rope.width <= self.head_dim:
            raise ConfigError(
                f"{self.rope.width} numbers of a head are to be rotated; allowed are even numbers up to "
                f"{self.head_dim}, a head's size"
            )

    @classmethod
    def of(
        cls,
        info: TargetInfo,
        *,
        intermediate_size: int | None = None,
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        rope: Rope | None = None,
        qk_norm: bool = True,
        gated: bool = False,
    ) -> LayerConfig:
        """As the target's own layers are; what is given differs.

        Queries and keys are normed whatever the target does: published drafters do so for every family.
        """
        return cls(
            hidden_size=info.hidden_size,
            intermediate_size=intermediate_size or info.intermediate_size,
            num_heads=num_heads or info.num_heads,
            num_kv_heads=num_kv_heads or info.num_kv_heads,
            head_dim=info.head_dim,
            eps=info.rms_norm_eps,
            rope=rope or info.rope,
            traits=info.traits,
            qk_norm=qk_norm,
            gated=gated,
        )
