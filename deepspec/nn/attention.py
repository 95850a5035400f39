"""Attention and decoder layers that leave open what attends to what: the caller passes that as a function.

So one layer serves packed prompts, single decoding rows and training blocks. Weight names are those of
Qwen3-style decoders.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from deepspec.errors import ConfigError
from deepspec.nn.blocks import RMSNorm, SwiGLU, additive_mask, apply_rotary

#: Queries ``[..., heads, d]``, keys and values ``[..., kv heads, d]`` of some rows to ``[..., heads, d]``.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Cosines and sines that broadcast against heads; see :func:`deepspec.nn.rotary_table`.
Table = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Projections, norms of queries and keys, and rotary positions around an attention that is passed in.

    Args:
        size: width of the output. in_size: width of the input, the same when None.
        eps: of the norms. qk_norm: whether queries and keys are normed.
        rotary_dim: how many of a head's numbers are rotated, the first ones; all when None.
        gated: whether ``q_proj`` also gives each head's gate, whose sigmoid scales the head's output.

    Raises ConfigError for heads that cannot share the key/value heads, and for a ``rotary_dim`` no head has.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        *,
        in_size: int | None = None,
        qk_norm: bool = True,
        rotary_dim: int | None = None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"num_heads is {num_heads} and num_kv_heads {num_kv_heads} (left out, they are the target's)"
                "; give a num_heads that is a multiple of num_kv_heads"
            )
        if rotary_dim is not None and rotary_dim not in range(2, head_dim + 1, 2):
            raise ConfigError(
                f"rotary_dim is {rotary_dim}; allowed are even numbers up to {head_dim}, a head's size"
            )
        in_size = in_size or size
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rotary_dim = rotary_dim or head_dim
        self.gated = gated
        self.q_proj = nn.Linear(in_size, num_heads * head_dim * (1 + gated), bias=False)
        self.k_proj = nn.Linear(in_size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(in_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, size, bias=False)
        self.q_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps) if qk_norm else nn.Identity()

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_heads // self.num_kv_heads

    def keys_values(self, x: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """Rotated keys and plain values ``[..., kv heads, d]`` of ``x [..., in_size]``."""
        heads = (self.num_kv_heads, self.head_dim)
        keys = self.k_norm(self.k_proj(x).unflatten(-1, heads))
        return apply_rotary(keys, table), self.v_proj(x).unflatten(-1, heads)

    def forward(self, x: Tensor, table: Table, attend: Attend) -> Tensor:
        """``[..., in_size]`` to ``[..., size]``."""
        query = self.q_proj(x).unflatten(-1, (self.num_heads, -1))
        gate = None
        if self.gated:
            query, gate = query.chunk(2, dim=-1)
        query = apply_rotary(self.q_norm(query), table)
        out = attend(query, *self.keys_values(x, table))
        return self.o_proj((out if gate is None else out * gate.sigmoid()).flatten(-2))


class DecoderLayer(nn.Module):
    """Attention and SwiGLU MLP, each with a norm before it and a residual around it.

    With ``recomputed`` a training pass keeps the layer's inputs alone and computes it once more on the way
    back, ``attend`` included, which has to give the same then: it may set what others read, not add to it.
    """

    recomputed = False

    def __init__(self, size: int, intermediate_size: int, attention: Attention, eps: float) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = SwiGLU(size, intermediate_size)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)

    def forward(self, x: Tensor, table: Table, attend: Attend, read: Tensor | None = None) -> Tensor:
        """``[..., size]`` to the same.

        Args:
            read: what attention reads instead of the normed ``x``, where a drafter mixes more into it.
        """
        if self.recomputed and self.training and torch.is_grad_enabled():
            # Nothing in a layer is random, so no random state is kept either.
            return checkpoint(
                self._run, x, table, attend, read, use_reentrant=False, preserve_rng_state=False
            )
        return self._run(x, table, attend, read)

    def _run(self, x: Tensor, table: Table, attend: Attend, read: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x) if read is None else read, table, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


def grouped_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """Scaled dot-product attention with shared key/value heads.

    Args:
        query: ``[B, Q, heads, d]``. keys, values: ``[B, L, kv heads, d]``.
        mask: of :func:`attention_mask`, None when all is seen, or is hidden by ``is_causal`` (Q = L).

    Returns:
        ``[B, Q, heads, d]``.
    """
    num, width, heads, size = query.shape
    query, keys, values = query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    if is_causal:
        out = scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)
    # Heads that share keys become more queries: no backend copies keys for them then.
    query = query.reshape(num, keys.shape[1], -1, size)
    out = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return out.reshape(num, heads, width, size).transpose(1, 2)


def attention_mask(seen: Tensor, heads_per_kv: int, dtype: torch.dtype) -> Tensor:
    """Additive mask for :func:`grouped_attention` from bool ``seen [B, Q, L]``; each query must see a key."""
    mask = additive_mask(seen, dtype)
    if seen.shape[1] == 1:
        return mask[:, None].expand(-1, 1, heads_per_kv, -1)
    return mask.repeat(1, heads_per_kv, 1)[:, None]
