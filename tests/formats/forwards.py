"""Straightforward forwards of foreign layouts, from their description alone: plain torch, one request.

Nothing here is shared with the drafters that are compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What a forward needs beside the weights."""

    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float = 1e-6
    is_gemma: bool = False
    share: float = 1.0
    softcap: float | None = None


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    scaled = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled if weight is None else scaled * weight


def rotate(x: Tensor, positions: Tensor, shape: Shape) -> Tensor:
    """``x [T, heads, d]``: pairs (i, i + d/2) turned by position * theta^(-2i/d)."""
    half = shape.head_dim // 2
    turning = int(shape.share * half)
    speeds = torch.tensor(
        [shape.theta ** (-2 * i / shape.head_dim) if i < turning else 0.0 for i in range(half)]
    )
    angles = positions[:, None].float() * speeds
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """``[Q, heads, d]``, one head after the other; bool ``seen [Q, L]``."""
    group = query.shape[1] // keys.shape[1]
    out = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ keys[:, head // group].T * scale
        out.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values[:, head // group])
    return torch.stack(out, dim=1)


def projected(x: Tensor, positions: Tensor, w: Weights, shape: Shape, name: str) -> Tensor:
    """Queries, keys or values ``[T, heads, d]`` of ``x``, normed and turned as the layout has it."""
    source = "k" if name == "v" and "v_proj.weight" not in w else name
    found = (x @ w[f"{source}_proj.weight"].T).unflatten(-1, (-1, shape.head_dim))
    if name == "v":
        return norm(found, None, shape.eps) if shape.is_gemma else found
    if f"{name}_norm.weight" in w:
        found = norm(found, w[f"{name}_norm.weight"], shape.eps)
    return rotate(found, positions, shape)


def mlp(x: Tensor, w: Weights, shape: Shape) -> Tensor:
    gate = x @ w["mlp.gate_proj.weight"].T
    act = torch.nn.functional.gelu(gate, approximate="tanh") if shape.is_gemma else gate * gate.sigmoid()
    return (act * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def after_attention(x: Tensor, attended: Tensor, w: Weights, shape: Shape) -> Tensor:
    """A layer from its attention's output on."""
    if not shape.is_gemma:
        x = x + attended
        return x + mlp(norm(x, w["post_attention_layernorm.weight"], shape.eps), w, shape)
    x = x + norm(attended, w["post_attention_layernorm.weight"], shape.eps)
    inner = mlp(norm(x, w["pre_feedforward_layernorm.weight"], shape.eps), w, shape)
    return (x + norm(inner, w["post_feedforward_layernorm.weight"], shape.eps)) * w["layer_scalar"]


def below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def scale_of(shape: Shape) -> float:
    return 1.0 if shape.is_gemma else shape.head_dim**-0.5


def capped(logits: Tensor, shape: Shape) -> Tensor:
    return logits if shape.softcap is None else shape.softcap * torch.tanh(logits / shape.softcap)


def dflash_hidden(w: Weights, shape: Shape, features: Tensor, embedded: Tensor, num_layers: int) -> Tensor:
    """Normed hidden states ``[slots, H]`` of a block behind ``features [T, K*H]``.

    ``embedded [slots, H]`` are the anchor and masks; the anchor stands at position T.
    """
    context = norm(features @ w["fc.weight"].T, w["hidden_norm.weight"], shape.eps)
    length, width = len(features), len(embedded)
    before, block = torch.arange(length), torch.arange(length, length + width)
    x = embedded
    for number in range(num_layers):
        layer = below(w, f"layers.{number}.")
        own = below(layer, "self_attn.")
        read = norm(x, layer["input_layernorm.weight"], shape.eps)
        query = projected(read, block, own, shape, "q")
        keys, values = (
            torch.cat(
                [projected(context, before, own, shape, kind), projected(read, block, own, shape, kind)]
            )
            for kind in "kv"
        )
        seen = torch.ones(width, length + width, dtype=torch.bool)
        out = attend(query, keys, values, seen, scale_of(shape)).flatten(1) @ own["o_proj.weight"].T
        x = after_attention(x, out, layer, shape)
    return norm(x, w["norm.weight"], shape.eps)


def head_bias(w: Weights, kind: str, hidden: Tensor, previous: Tensor) -> Tensor:
    """The sequential correction ``[G, Vd]``; ``w`` by the names below ``markov_head.``."""
    embedded = w["markov_w1.weight"][previous]
    if kind == "vanilla":
        latent = embedded
    elif kind == "gated":
        gate = torch.cat([hidden, embedded], -1) @ w["gate_proj.weight"].T + w["gate_proj.bias"]
        latent = gate.sigmoid() * embedded
    else:
        state, rows = torch.zeros(embedded.shape[1]), []
        for h, e in zip(hidden, embedded, strict=True):
            mixed = w["joint_proj.weight"] @ torch.cat([state, e, h]) + w["joint_proj.bias"]
            gate, candidate, output = mixed.split(len(e))
            state = gate.sigmoid() * state + (1 - gate.sigmoid()) * candidate.tanh()
            rows.append(output.tanh())
        latent = torch.stack(rows)
    return latent @ w["markov_w2.weight"].T


def eagle3_logits(
    w: Weights,
    shape: Shape,
    features: Tensor,
    embedded: Tensor,
    *,
    first: str,
    residual_normed: bool = False,
    feeds_normed: bool = False,
) -> Tensor:
    """Logits ``[G, Vd]`` of G steps: true features ``[T, K*H]`` with the next T tokens, then its own states.

    ``embedded [T - 1 + G, H]`` are tokens 1 to T - 1, the anchor, and the drafts before the last. One layer,
    whose names begin with ``first``.
    """
    layer = below(w, first)
    own = below(layer, "self_attn.")
    num_steps = len(embedded) - len(features) + 1
    states = list(features @ w["fc.weight"].T)
    logits = []
    for _ in range(num_steps):
        hidden = torch.stack(states)
        tokens = embedded[: len(hidden)]
        normed = norm(hidden, layer["hidden_norm.weight"], shape.eps)
        read = torch.cat([norm(tokens, layer["input_layernorm.weight"], shape.eps), normed], dim=-1)
        positions = torch.arange(len(hidden))
        query, keys, values = (projected(read, positions, own, shape, kind) for kind in "qkv")
        seen = torch.ones(len(hidden), len(hidden)).tril().bool()
        out = attend(query, keys, values, seen, scale_of(shape)).flatten(1) @ own["o_proj.weight"].T
        x = after_attention(normed if residual_normed else hidden, out, layer, shape)[-1]
        final = norm(x, w["norm.weight"], shape.eps)
        logits.append(capped(final @ w["lm_head.weight"].T, shape))
        states.append(final if feeds_normed else x)
    return torch.stack(logits)
