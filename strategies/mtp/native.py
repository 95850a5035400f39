"""MTP weights that a model was released with, read from its safetensors: transformers drops them on load.

Two layouts: ``mtp.*`` (Qwen3-Next, Qwen3.5), whose norms are stored less one, and a layer behind the last one
(DeepSeek-V3 and those who follow it). Both put the embedding before the hidden state, as we do. Attention has
to be of the kind that :class:`deepspec.nn.Attention` computes, the MLP dense; all else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.formats import Header, NameTable, Rule, read_header

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
_KNOWN = {
    *(f"{name}.weight" for name in ("input_proj", "token_layernorm", "hidden_layernorm", "norm")),
    *(f"layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")),
    *(f"layers.0.self_attn.{name}.weight" for name in _ATTENTION),
    *(f"layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
}
#: Copies of the target's embedding and LM head.
COPIES: tuple[tuple[str, Literal["embedding", "lm_head"]], ...] = (
    ("embed_tokens.weight", "embedding"),
    ("shared_head.head.weight", "lm_head"),
)


def norms_less_one(tensor: Tensor) -> Tensor:
    """As Qwen3-Next stores what a norm multiplies by."""
    return tensor.float() - 1 if tensor.ndim == 1 else tensor


def norms(tensor: Tensor) -> Tensor:
    """What a norm multiplies by, of what Qwen3-Next stores."""
    return tensor.float() + 1 if tensor.ndim == 1 else tensor


def qwen_table(ours: str) -> NameTable:
    """Names in the layout of Qwen3-Next; ``ours`` is the beginning of those of the module."""
    begins = {
        "fc.": "input_proj.",
        "pre_fc_norm_embedding.": "token_layernorm.",
        "pre_fc_norm_hidden.": "hidden_layernorm.",
        "norm.": "norm.",
        "layers.0.": "layers.0.",
    }
    return NameTable(
        tuple(Rule(f"mtp.{theirs}", ours + mine, norms, norms_less_one) for theirs, mine in begins.items())
    )


def deepseek_table(num_layers: int, ours: str) -> NameTable:
    """Names in the layout of DeepSeek-V3, behind a target's last layer."""
    prefix = f"model.layers.{num_layers}."
    begins = {
        "eh_proj.": "input_proj.",
        "enorm.": "token_layernorm.",
        "hnorm.": "hidden_layernorm.",
        "shared_head.norm.": "norm.",
        "": "layers.0.",
    }
    return NameTable(tuple(Rule(f"{prefix}{theirs}", ours + mine) for theirs, mine in begins.items()))


@dataclass(frozen=True)
class Native:
    """Where a model's MTP module is in its files.

    Attributes:
        is_qwen: which of the two layouts. prefix: of its tensors. names: those that are weights.
        config: of the text model.
    """

    is_qwen: bool
    prefix: str
    names: tuple[str, ...]
    config: Mapping[str, Any]

    def table(self, ours: str = "") -> NameTable:
        """Their names, and ours behind ``ours``."""
        return (
            qwen_table(ours) if self.is_qwen else deepseek_table(int(self.config["num_hidden_layers"]), ours)
        )

    @property
    def feed_back(self) -> str:
        """What the weights were made for; GLM has DeepSeek's names, and hands on what its head reads."""
        is_normed = self.is_qwen or str(self.config.get("model_type", "")).startswith("glm")
        return "post_norm" if is_normed else "pre_norm"


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


def find_native(header: Header) -> Native:
    """The MTP module of a model's files; one without names where there is none."""
    config = header.config.get("text_config", header.config)
    is_qwen = any(key.startswith("mtp.") for key in header.files)
    prefix = "mtp." if is_qwen else f"model.layers.{config.get('num_hidden_layers')}."
    names = [
        name
        for name in header.files
        if name.startswith(prefix) and name.removeprefix(prefix) not in dict(COPIES)
    ]
    return Native(is_qwen, prefix, tuple(names), config)


def read_native(name: str) -> NativeModule:
    """The MTP module of a folder or hub model.

    Raises:
        TargetError: it cannot be read. ConfigError: it has none, or one of a kind that we do not compute.
    """
    header = read_header(name, "drafter.native_weights")
    native = find_native(header)
    check_native(native, f"drafter.native_weights: {name!r}")
    weights = native.table().to_ours(header.tensors(native.names))
    options, rotary_width = native_options(header, native)
    return NativeModule({**options, "feed_back": native.feed_back}, weights, rotary_width)


def native_options(header: Header, native: Native) -> tuple[dict[str, Any], int]:
    """The layer's options, and how many numbers of a head are rotated; raises ConfigError without them."""
    shapes = header.shapes(native.names)
    by_ours = {name: shapes[theirs] for theirs, name in native_names(native).items()}
    try:
        return attention_options(native.config, by_ours)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{header.what} {header.name!r} cannot be loaded: {error}") from error


def attention_options(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], int]:
    """Options of a draft layer by a text model's configuration and shapes by our names; and its rotary width.

    Raises KeyError, ValueError where one is missing.
    """
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"its MLP has the activation {activation!r}, ours silu")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    options = {
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "qk_norm": "layers.0.self_attn.q_norm.weight" in shapes,
        "attention_gate": shapes["layers.0.self_attn.q_proj.weight"][0] == 2 * heads * head_dim,
    }
    return options, int(head_dim * share)


def native_names(native: Native) -> dict[str, str]:
    """Our name of each tensor."""
    return {name: native.table().our_name(name) or name for name in native.names}


def check_native(native: Native, where: str) -> None:
    """Raise ConfigError for a model without MTP weights, or with some of another kind."""
    if not native.names:
        prefix = f"model.layers.{native.config.get('num_hidden_layers')}."
        raise ConfigError(
            f"{where} has no MTP weights, neither mtp.* nor {prefix}*; give a model that was released with "
            "them"
        )
    ours = native_names(native)
    if unfit := sorted(key for key, new in ours.items() if new not in _KNOWN):
        raise ConfigError(
            f"{where.partition(': ')[0]}: {_listed(unfit)} of {where.partition(': ')[2]} do not fit; the "
            "draft "
            "layer has attention without biases or low-rank projections and a dense SwiGLU MLP; train it "
            "from "
            "scratch instead"
        )
    norms = {f"layers.0.self_attn.{norm}.weight" for norm in ("q_norm", "k_norm")}
    if missing := sorted(_KNOWN - set(ours.values()) - norms):
        raise ConfigError(f"{where} lacks {_listed(missing)}; it is damaged")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
