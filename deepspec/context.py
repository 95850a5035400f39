"""What parts are built for, and the readout that later parts then fit to. Import both from ``interfaces``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Rotary positions (2104.09864): at position t the i-th pair of a head turns by t * ``frequencies[i]``.

    Attributes:
        theta: the base.
        frequencies: radians a position, one for every two numbers of the part of a head that is rotated.
        scale: what cosines and sines are multiplied by, as some ways to stretch the context do.
    """

    theta: float
    frequencies: tuple[float, ...]
    scale: float = 1.0

    @classmethod
    def plain(cls, theta: float, width: int) -> Rope:
        """theta^(-2i / width), unscaled, for ``width`` numbers."""
        return cls(theta, tuple(theta ** (-step / width) for step in range(0, width, 2)))

    @property
    def width(self) -> int:
        """How many numbers of a head are rotated, the first ones."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True)
class LayerTraits:
    """What sets a family's decoder layers apart, beside their sizes. The defaults are Qwen3's and Llama's.

    Attributes:
        unit_offset: norms multiply by 1 + weight.
        activation: of the gated MLP, by its name in transformers.
        output_norms: what attention and MLP give is normed, too, before it is added.
        value_norm: values are normed, without weights.
        keys_are_values: one projection gives keys and values.
        attention_scale: what scores are multiplied by; None is head size ** -0.5.
        scaled: what the layer gives is multiplied by a number of its own.
    """

    unit_offset: bool = False
    activation: str = "silu"
    output_norms: bool = False
    value_norm: bool = False
    keys_are_values: bool = False
    attention_scale: float | None = None
    scaled: bool = False


@dataclass(frozen=True)
class TargetInfo:
    """What a part may know of the target. Weights are the target's own: frozen, shared, never copied.

    Attributes:
        hidden_size: D. vocab_size: V. num_layers: decoder layers.
        num_heads, num_kv_heads, head_dim, intermediate_size, rms_norm_eps, rope: of its layers; where they
            differ, of those that see the whole text.
        max_positions: longest text it accepts.
        mask_token_id: an id that real text never uses, or None when the tokenizer has none.
        embedding: ``[V, D]``. embedding_scale: what the target multiplies embeddings by.
        lm_head: ``[V, D]``. final_softcap: c in c*tanh(x/c) on its logits, or None.
        vocabulary: gives the id of each token of its tokenizer, or None where it has no tokenizer.
        traits: what else sets its layers apart.
    """

    hidden_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: Rope
    max_positions: int
    mask_token_id: int | None
    embedding: Tensor
    embedding_scale: float
    lm_head: Tensor
    final_softcap: float | None
    vocabulary: Callable[[], Mapping[str, int]] | None = None
    traits: LayerTraits = LayerTraits()


@dataclass(frozen=True)
class BuildContext:
    """What a strategy is being built for: the target, G, and (for parts after the drafter) H and Vd."""

    target: TargetInfo
    draft_length: int
    hidden_size: int = 0
    draft_vocab_size: int = 0


@dataclass(frozen=True)
class Readout:
    """How hidden states become logits over the draft vocabulary.

    Attributes:
        weight: ``[Vd, H]``.
        softcap: c in c*tanh(x/c), or None.
        target_ids: int64 ``[Vd]``, the target id of each row, or None when Vd = V and row i is id i.
        trained: whether ``weight`` belongs to the draft model's own parameters.
    """

    weight: Tensor
    softcap: float | None = None
    target_ids: Tensor | None = None
    trained: bool = False
