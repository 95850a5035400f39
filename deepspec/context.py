"""What parts are built for, and the readout that later parts then fit to. Import both from ``interfaces``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TargetInfo:
    """What a part may know of the target. Weights are the target's own: frozen, shared, never copied.

    Attributes:
        hidden_size: D. vocab_size: V. num_layers: decoder layers.
        num_heads, num_kv_heads, head_dim, intermediate_size, rms_norm_eps, rope_theta: of its layers.
        max_positions: longest text it accepts.
        mask_token_id: an id that real text never uses, or None when the tokenizer has none.
        embedding: ``[V, D]``. embedding_scale: what the target multiplies embeddings by.
        lm_head: ``[V, D]``. final_softcap: c in c*tanh(x/c) on its logits, or None.
        vocabulary: gives the id of each token of its tokenizer, or None where it has no tokenizer.
    """

    hidden_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    mask_token_id: int | None
    embedding: Tensor
    embedding_scale: float
    lm_head: Tensor
    final_softcap: float | None
    vocabulary: Callable[[], Mapping[str, int]] | None = None


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
