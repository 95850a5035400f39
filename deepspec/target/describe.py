"""What drafters need to know of a target, read off its configuration and one of its layers.

Nothing here knows a family by its name: what a norm multiplies by is tried out, and what a layer is made of
is seen by the names of its parts, which transformers keeps the same in all families.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from deepspec.interfaces import LayerTraits, Rope, TargetInfo
from deepspec.target.decoder import PackedDecoder

_FOUR_NORMS = {"post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}


def describe(
    decoder: PackedDecoder, tokenizer: PreTrainedTokenizerBase | None, config: Any, layer: nn.Module
) -> TargetInfo:
    """Sizes, shared weights and traits.

    Args:
        decoder: the model, whose layers may have been left out.
        config: of the text model with all its layers.
        layer: its layer number :func:`widest_layer`, also without weights.
    """
    number = widest_layer(config)
    sizes = _of_layer(config, number)
    heads = config.num_attention_heads
    head_dim = getattr(sizes, "head_dim", None) or config.hidden_size // heads
    return TargetInfo(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(sizes, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        intermediate_size=_mlp_width(sizes),
        rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
        rope=_rope(decoder, config, number, head_dim),
        max_positions=config.max_position_embeddings,
        mask_token_id=_mask_token(config.vocab_size, tokenizer),
        embedding=decoder.embedding,
        embedding_scale=decoder.embedding_scale,
        lm_head=decoder.lm_head,
        final_softcap=decoder.softcap,
        vocabulary=None if tokenizer is None else tokenizer.get_vocab,
        traits=_traits(decoder, config, layer, head_dim),
    )


def widest_layer(config: Any) -> int:
    """The last layer that sees the whole text; the last of all where every one has a window."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return max((i for i, kind in enumerate(kinds) if kind == "full_attention"), default=len(kinds) - 1)


def _of_layer(config: Any, number: int) -> Any:
    """The configuration as one layer has it."""
    each = getattr(config, "per_layer_config", None)
    return config if each is None else each[number]


def _mlp_width(config: Any) -> int:
    width = config.intermediate_size
    return width[0] if isinstance(width, (list, tuple)) else width


def _traits(decoder: PackedDecoder, config: Any, layer: nn.Module, head_dim: int) -> LayerTraits:
    parts = dict(layer.named_children())
    attention = parts.get("self_attn", nn.Module())
    inside = dict(attention.named_children())
    is_plain = "k_proj" in inside  # neither latents nor one matrix for all three
    scale = getattr(attention, "scaling", None)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return LayerTraits(
        unit_offset=_has_unit_offset(decoder.model.get_decoder().norm),
        activation=activation or "silu",
        output_norms=parts.keys() >= _FOUR_NORMS,
        value_norm="v_norm" in inside,
        keys_are_values=is_plain and "v_proj" not in inside,
        attention_scale=scale if is_plain and scale is not None and scale != head_dim**-0.5 else None,
    )


def _has_unit_offset(norm: nn.Module) -> bool:
    """Whether an RMS norm multiplies by 1 + weight: seen at ones, whose root mean square is 1."""
    weight = norm.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        excess = (norm(torch.ones_like(weight)) - weight).float()
    return bool((excess - 1).abs().max() < 0.1)


def _rope(decoder: PackedDecoder, config: Any, number: int, head_dim: int) -> Rope:
    """The rotary positions of layer ``number``, made anew since a shortened model may lack them."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = float(parameters.get(kinds[number], parameters).get("rope_theta", 10_000.0))
    rotary = getattr(decoder.model.get_decoder(), "rotary_emb", None)
    if rotary is None:
        return Rope.plain(theta, head_dim)
    whole = type(rotary)(config=config)
    prefix = "" if hasattr(whole, "inv_freq") else f"{kinds[number]}_"
    frequencies = getattr(whole, f"{prefix}inv_freq").float().tolist()
    return Rope(theta, tuple(frequencies), float(getattr(whole, f"{prefix}attention_scaling", 1.0)))


def _mask_token(vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The tokenizer's mask token, else the first id past its vocabulary when the embedding is padded."""
    if tokenizer is None:
        return None
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    return len(tokenizer) if len(tokenizer) < vocab_size else None
