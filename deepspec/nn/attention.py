"""Attention and decoder layers that leave open what attends to what: the caller passes that as a function.

So one layer serves packed prompts, single decoding rows and training blocks, and by its configuration every
family of targets. Weight names are those of the families' own decoders.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from deepspec.nn.blocks import GatedMLP, RMSNorm, additive_mask, apply_rotary
from deepspec.nn.config import LayerConfig

#: Queries ``[..., heads, d]``, keys and values ``[..., kv heads, d]`` of some rows to ``[..., heads, d]``.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Cosines and sines that broadcast against heads; see :func:`deepspec.nn.rotary_table`.
Table = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Projections, norms of queries and keys, and rotary positions around an attention that is passed in.

    Args:
        config: sizes and kind. in_size: width of the input, the hidden size when None.
    """

    def __init__(self, config: LayerConfig, *, in_size: int | None = None) -> None:
        super().__init__()
        in_size, traits = in_size or config.hidden_size, config.traits
        heads, head_dim = config.num_heads, config.head_dim
        self.config = config
        self.num_heads, self.num_kv_heads, self.head_dim = heads, config.num_kv_heads, head_dim
        self.q_proj = nn.Linear(in_size, heads * head_dim * (1 + config.gated), bias=False)
        self.k_proj = nn.Linear(in_size, config.num_kv_heads * head_dim, bias=False)
        self.v_proj = (
            None if traits.keys_are_values else nn.Linear(in_size, config.num_kv_heads * head_dim, bias=False)
        )
        self.o_proj = nn.Linear(heads * head_dim, config.hidden_size, bias=False)
        # Attention that is passed in scales scores by head_dim ** -0.5.
        self._query_scale = 1.0 if traits.attention_scale is None else traits.attention_scale * head_dim**0.5
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = norm = RMSNorm(head_dim, config.eps, unit_offset=traits.unit_offset)
            norm.multiply_by_(1 / self._query_scale)  # new layers start with the usual scores
            self.k_norm = RMSNorm(head_dim, config.eps, unit_offset=traits.unit_offset)

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_heads // self.num_kv_heads

    def keys_values(self, x: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """Rotated keys and plain values ``[..., kv heads, d]`` of ``x [..., in_size]``."""
        heads = (self.num_kv_heads, self.head_dim)
        keys = self.k_proj(x).unflatten(-1, heads)
        values = keys if self.v_proj is None else self.v_proj(x).unflatten(-1, heads)
        if self.config.traits.value_norm:
            values = rms_norm(values.float(), (self.head_dim,), eps=self.config.eps).to(values.dtype)
        return apply_rotary(self.k_norm(keys), table), values

    def forward(self, x: Tensor, table: Table, attend: Attend) -> Tensor:
        """``[..., in_size]`` to ``[..., hidden_size]``."""
        query = self.q_proj(x).unflatten(-1, (self.num_heads, -1))
        gate = None
        if self.config.gated:
            query, gate = query.chunk(2, dim=-1)
        query = apply_rotary(self.q_norm(query), table)
        if self._query_scale != 1:
            query = query * self._query_scale
        out = attend(query, *self.keys_values(x, table))
        return self.o_proj((out if gate is None else out * gate.sigmoid()).flatten(-2))


class DecoderLayer(nn.Module):
    """Attention and gated MLP, each with a norm before it, one behind it in some families, and a residual.

    With ``recomputed`` a training pass keeps the layer's inputs alone and computes it once more on the way
    back, ``attend`` included, which has to give the same then: it may set what others read, not add to it.

    Args:
        config: sizes and kind. in_size: width of what attention reads, the hidden size when None.
    """

    recomputed = False
    layer_scalar: Tensor | None

    def __init__(self, config: LayerConfig, *, in_size: int | None = None) -> None:
        super().__init__()
        self.self_attn = Attention(config, in_size=in_size)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.traits.activation)

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.eps, unit_offset=config.traits.unit_offset)

        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self._norms_output = config.traits.output_norms
        if self._norms_output:  # then post_attention_layernorm is the one behind attention
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.register_buffer("layer_scalar", torch.ones(1) if config.traits.scaled else None)

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
        attended = self.self_attn(self.input_layernorm(x) if read is None else read, table, attend)
        if not self._norms_output:
            x = x + attended
            return x + self.mlp(self.post_attention_layernorm(x))
        x = x + self.post_attention_layernorm(attended)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x if self.layer_scalar is None else x * self.layer_scalar


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
