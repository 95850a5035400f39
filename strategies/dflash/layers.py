"""The layers of DFlash's drafter: a block's slots attend to injected context and to each other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from deepspec.nn import RMSNorm, SwiGLU, apply_rotary

#: Takes a block's keys and values ``[B, Q, kv heads, d]`` and returns those of context and block.
JoinContext = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ContextAttention(nn.Module):
    """Attention of block slots over [context ; block], with one set of projections for both."""

    def __init__(self, size: int, num_heads: int, num_kv_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.q_proj = nn.Linear(size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, size, bias=False)
        self.q_norm = RMSNorm(head_dim, eps)
        self.k_norm = RMSNorm(head_dim, eps)

    def keys_values(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated keys and plain values ``[..., kv heads, d]`` of ``x [..., size]``."""
        heads = (self.num_kv_heads, self.head_dim)
        keys = self.k_norm(self.k_proj(x).unflatten(-1, heads))
        return apply_rotary(keys, table), self.v_proj(x).unflatten(-1, heads)

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], join: JoinContext, mask: Tensor | None
    ) -> Tensor:
        """One block pass.

        Args:
            x: ``[B, Q, size]``. table: rotary table of the Q positions.
            join: puts the block's keys and values behind the context's.
            mask: additive ``[B, 1, heads per kv head * Q, keys]``, or None when all is seen.
        """
        keys, values = (part.transpose(1, 2) for part in join(*self.keys_values(x, table)))
        repeats = self.num_heads // self.num_kv_heads
        query = apply_rotary(
            self.q_norm(self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))), table
        )
        query = query.transpose(1, 2).reshape(len(x), self.num_kv_heads, repeats * x.shape[1], self.head_dim)
        out = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        out = out.reshape(len(x), self.num_heads, x.shape[1], self.head_dim).transpose(1, 2)
        return self.o_proj(out.flatten(2))


class DraftLayer(nn.Module):
    """Attention and MLP, each with a norm before it and a residual around it."""

    def __init__(self, size: int, intermediate_size: int, attention: ContextAttention, eps: float) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = SwiGLU(size, intermediate_size)
        self.input_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], join: JoinContext, mask: Tensor | None
    ) -> Tensor:
        """See :meth:`ContextAttention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), table, join, mask)
        return x + self.mlp(self.post_attention_layernorm(x))
