"""Tiny random targets of several families, for tests: real transformers code paths, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from deepspec.interfaces import TargetInfo
from deepspec.target import Target, make_target

VOCAB = 97
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def qwen3(**changes: object) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**_SHAPE, **changes}))


def llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SHAPE, **changes}))


def gemma3(**changes: object) -> PreTrainedModel:
    shape = {**_SHAPE, "sliding_window": 6, "query_pre_attn_scalar": 16, "num_hidden_layers": 6, **changes}
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape))


def qwen3_5(**changes: object) -> PreTrainedModel:
    linear = {f"linear_{kind}": 16 for kind in ("key_head_dim", "value_head_dim")}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    shape = {**_SHAPE, **linear, **heads, **changes}
    kinds = ["linear_attention", "full_attention"] * (int(str(shape["num_hidden_layers"])) // 2)
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**shape, layer_types=kinds))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {"qwen3": qwen3, "llama": llama, "gemma3": gemma3}
_MODELS = {**FAMILIES, "qwen3_5": qwen3_5}


def make(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """A model with random weights from ``seed``."""
    torch.manual_seed(seed)
    return _MODELS[family](**changes).to(dtype).eval()


def masked_target() -> Target:
    """A tiny target without a tokenizer whose last token id is free for masks."""
    plain = make_target(make("qwen3"))
    return replace(plain, info=replace(plain.info, mask_token_id=VOCAB - 1))


def tiny_info() -> TargetInfo:
    """Sizes and weights of a tiny target, for parts that are tested without running it."""
    return make_target(make("qwen3")).info
