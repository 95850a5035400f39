"""MTP weights that a model was released with, read from its safetensors: transformers drops them on load.

Two layouts: ``mtp.*`` (Qwen3-Next, Qwen3.5), whose norms are stored less one, and a layer behind the last one
(DeepSeek-V3 and those who follow it). Both put the embedding before the hidden state, as we do. Attention has
to be of the kind that :class:`deepspec.nn.Attention` computes, the MLP dense; all else is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.target import ModelSource

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: Beginnings of names in each layout, and ours.
_QWEN = {
    "fc.": "input_proj.",
    "pre_fc_norm_embedding.": "token_layernorm.",
    "pre_fc_norm_hidden.": "hidden_layernorm.",
    "norm.": "norm.",
    "layers.0.": "layers.0.",
}
_DEEPSEEK = {
    "eh_proj.": "input_proj.",
    "enorm.": "token_layernorm.",
    "hnorm.": "hidden_layernorm.",
    "shared_head.norm.": "norm.",
    "": "layers.0.",
}
#: Copies of the target's embedding and LM head.
_SHARED = ("embed_tokens.weight", "shared_head.head.weight")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
_KNOWN = {
    *(f"{name}.weight" for name in ("input_proj", "token_layernorm", "hidden_layernorm", "norm")),
    *(f"layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")),
    *(f"layers.0.self_attn.{name}.weight" for name in _ATTENTION),
    *(f"layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
}


@dataclass(frozen=True)
class NativeModule:
    """One released module.

    Attributes:
        options: of the MTP drafter that holds it.
        weights: by the names of :class:`~deepspec_strategies.mtp.module.MTPModule`; norms as what they
            multiply by.
        rotary_width: how many numbers of a head are rotated.
    """

    options: dict[str, Any]
    weights: dict[str, Tensor]
    rotary_width: int

    def check_positions(self, width: int) -> None:
        """Refuse a module whose heads are not rotated as the target's, which gives the positions."""
        if self.rotary_width != width:
            raise ConfigError(
                f"drafter.native_weights: {self.rotary_width} numbers of a head are rotated, {width} in this "
                "target; give the weights that were released with the target"
            )


def read_native(name: str) -> NativeModule:
    """The MTP module of a folder or hub model.

    Raises:
        TargetError: it cannot be read. ConfigError: it has none, or one of a kind that we do not compute.
    """
    source = ModelSource(
        what="drafter.native_weights",
        name=name,
        revision=None,
        revision_key="the name",
        own_code="its code is never run",
        too_big="free some memory",
    )
    config = source.attempt(lambda: _read_json(_fetched(name, "config.json")))
    config = config.get("text_config", config)
    files = source.attempt(lambda: _files(name))
    is_qwen = any(key.startswith("mtp.") for key in files)
    prefix = "mtp." if is_qwen else f"model.layers.{config.get('num_hidden_layers')}."
    ours = {
        key: _renamed(key.removeprefix(prefix), _QWEN if is_qwen else _DEEPSEEK)
        for key in files
        if key.startswith(prefix) and not key.endswith(_SHARED)
    }
    _check_names(name, ours, prefix)
    read = source.attempt(lambda: _tensors(name, {key: files[key] for key in ours}))
    weights = {
        ours[key]: tensor.float() + 1 if is_qwen and tensor.ndim == 1 else tensor
        for key, tensor in read.items()
    }
    options = source.attempt(lambda: _options(config, weights))
    # GLM has DeepSeek's names, and hands on what its shared head reads.
    is_normed = is_qwen or str(config.get("model_type", "")).startswith("glm")
    rotary_width = options.pop("rotary_width")
    feed_back = "post_norm" if is_normed else "pre_norm"
    return NativeModule({**options, "feed_back": feed_back}, weights, rotary_width)


def _options(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The layer's options and ``rotary_width``; raises KeyError, ValueError where one is missing."""
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"its MLP has the activation {activation!r}, ours silu")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return {
        "intermediate_size": len(weights["layers.0.mlp.gate_proj.weight"]),
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "qk_norm": "layers.0.self_attn.q_norm.weight" in weights,
        "attention_gate": len(weights["layers.0.self_attn.q_proj.weight"]) == 2 * heads * head_dim,
        "rotary_width": int(head_dim * share),
    }


def _check_names(name: str, ours: Mapping[str, str], prefix: str) -> None:
    if not ours:
        raise ConfigError(
            f"drafter.native_weights: {name!r} has no MTP weights, neither mtp.* nor {prefix}*; give a model "
            "that was released with them"
        )
    if unfit := sorted(key for key, new in ours.items() if new not in _KNOWN):
        raise ConfigError(
            f"drafter.native_weights: {_listed(unfit)} of {name!r} do not fit; the draft layer has attention "
            "without biases or low-rank projections and a dense SwiGLU MLP; train it from scratch instead"
        )
    norms = {f"layers.0.self_attn.{norm}.weight" for norm in ("q_norm", "k_norm")}
    if missing := sorted(_KNOWN - set(ours.values()) - norms):
        raise ConfigError(f"drafter.native_weights: {name!r} lacks {_listed(missing)}; it is damaged")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _renamed(key: str, table: Mapping[str, str]) -> str:
    """Our name of a tensor, its own where the layout has no such name."""
    start = next((start for start in table if key.startswith(start)), None)
    return key if start is None else table[start] + key.removeprefix(start)


def _files(name: str) -> dict[str, str]:
    """Each tensor's file."""
    try:
        return dict(_read_json(_fetched(name, _INDEX))["weight_map"])
    except (FileNotFoundError, EntryNotFoundError):
        with safe_open(_fetched(name, _SINGLE), framework="pt") as file:
            return dict.fromkeys(file.keys(), _SINGLE)


def _tensors(name: str, files: Mapping[str, str]) -> dict[str, Tensor]:
    read = {}
    for place in sorted(set(files.values())):
        with safe_open(_fetched(name, place), framework="pt") as file:
            read.update({key: file.get_tensor(key) for key, where in files.items() if where == place})
    return read


def _fetched(name: str, file: str) -> Path:
    """A file of the folder or hub model, on this machine."""
    folder = Path(name)
    return folder / file if folder.is_dir() else Path(hf_hub_download(name, file))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
