"""Hugging Face configurations of decoder layers, as options of draft layers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

from deepspec.errors import ConfigError
from deepspec.interfaces import Rope, TargetInfo
from deepspec.nn import LayerOptions

_FAMILIES = {"qwen3": "qwen3", "llama": "llama", "gemma4_text": "gemma4", "gemma4_unified_text": "gemma4"}


def layer_options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of :class:`deepspec.nn.LayerOptions`, from a decoder's configuration; ``where`` begins errors.

    Raises ConfigError for a layer of another kind.
    """
    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        raise ConfigError(
            f"{where}: its layers are those of model_type {kind!r}; known are {', '.join(_FAMILIES)}"
        )
    family = _FAMILIES[kind]
    _check_plain(config, family, where)
    theta, share = _rotary(config, where)
    heads = int(config["num_attention_heads"])
    options: dict[str, Any] = {
        "layer": family,
        "num_layers": int(config["num_hidden_layers"]),
        "intermediate_size": int(config["intermediate_size"]),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        "rope_theta": theta,
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
    }
    if family == "gemma4":
        is_shared = bool(config.get("attention_k_eq_v"))
        options["head_dim"] = int(config.get("global_head_dim") or config["head_dim"])
        if is_shared:
            options["num_kv_heads"] = int(config["num_global_key_value_heads"])
        options |= {"values_are_keys": is_shared, "rotary_share": share}
    elif share != 1.0:
        raise ConfigError(f"{where}: only a part of each head is rotated, which these layers do not compute")
    return options


def decoder_config(options: LayerOptions, info: TargetInfo, *, num_layers: int) -> dict[str, Any]:
    """The configuration of a decoder with draft layers of the kind qwen3 or llama."""
    layer, family = options.layer_config(info), options.family(info)
    return {
        "model_type": family,
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": layer.num_heads,
        "num_key_value_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": layer.eps,
        "rope_theta": layer.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": layer.rope.theta},
        "vocab_size": info.vocab_size,
        "max_position_embeddings": info.max_positions,
        "tie_word_embeddings": False,
        **({"layer_types": ["full_attention"] * num_layers} if family == "qwen3" else {}),
    }


def is_plain(rope: Rope, head_dim: int) -> bool:
    """Whether rotary positions are those of the base alone, over the whole head; in float32."""
    plain = Rope.plain(rope.theta, head_dim).frequencies
    return (
        rope.scale == 1.0
        and len(rope.frequencies) == len(plain)
        and all(isclose(one, other, rel_tol=1e-5) for one, other in zip(rope.frequencies, plain, strict=True))
    )


def layer_fault(options: LayerOptions, info: TargetInfo) -> str | None:
    """Why other projects' loaders compute something else with these layers and this target; None if not."""
    layer, family = options.layer_config(info), options.family(info)
    if family is None:
        return "no layout has layers like this target's; train with --set drafter.layer=qwen3"
    if family == "gemma4":
        return None
    if not is_plain(layer.rope, layer.head_dim):
        return "its rotary positions are plain, and this target's are stretched or of a part of each head"
    if info.embedding_scale == 1.0 and info.final_softcap is None:
        return None
    return (
        "loaders scale embeddings and cap logits for layers like Gemma's alone, and this target does so with "
        f"drafter.layer={options.layer}; train with --set drafter.layer=gemma4"
    )


def _rotary(config: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Base, and the share of the angles that turn."""
    given = config.get("rope_parameters") or {}
    given = given.get("full_attention", given)
    old = config.get("rope_scaling") or {}
    kind = given.get("rope_type") or old.get("rope_type") or old.get("type") or "default"
    share = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if kind not in ("default", "proportional"):
        raise ConfigError(
            f"{where}: its rotary positions are of type {kind!r}; known are default and proportional"
        )
    theta = given.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return float(theta), float(share)


def _check_plain(config: Mapping[str, Any], family: str, where: str) -> None:
    activation = config.get("hidden_activation" if family == "gemma4" else "hidden_act")
    known = "gelu_pytorch_tanh" if family == "gemma4" else "silu"
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    faults = {
        f"the activation {activation!r}": activation not in (None, known),
        "biases in its projections": bool(config.get("attention_bias") or config.get("mlp_bias")),
        f"{', '.join(sorted(kinds))} layers": bool(kinds),
        "experts": bool(config.get("enable_moe_block")),
    }
    if found := [fault for fault, is_there in faults.items() if is_there]:
        raise ConfigError(f"{where}: it has {found[0]}, which draft layers here do not compute")
