"""Tiny random models of the target families that DeepSpec is held to: transformers' own code, no download."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from deepspec.target import ModelSource, Target, make_target
from tests.tiny_tokenizer import tokenizer

VOCAB = 97
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attention_dropout": 0.0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HYBRID = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
MULTIMODAL = "Mistral 3, multimodal file"
SLIDING = ["sliding_attention", "full_attention"] * 2

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


class Int8Linear(nn.Module):
    """Numbers of eight bits and a scale for each row; no ``weight``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("numbers", (layer.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    @property
    def matrix(self) -> Tensor:
        return self.numbers * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.matrix)


class Int8Embedding(nn.Module):
    """The same for an embedding, whose ``weight`` are the numbers."""

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        inner = Int8Linear(layer)
        self.weight = nn.Parameter(inner.numbers, requires_grad=False)
        self.register_buffer("scale", inner.scale)
        self.embed_scale = layer.embed_scale

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weight * self.scale)[ids] * self.embed_scale


def _qwen3() -> PreTrainedModel:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHAPE))


def _qwen3_window() -> PreTrainedModel:
    window = {"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING}
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**{**SHAPE, **window, "tie_word_embeddings": True}))


def _qwen3_moe() -> PreTrainedModel:
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[0]))


def _qwen3_5() -> PreTrainedModel:
    return hf.Qwen3_5ForCausalLM(hf.Qwen3_5TextConfig(**SHAPE, **HYBRID))


def _qwen3_5_moe() -> PreTrainedModel:
    shared = {"shared_expert_intermediate_size": 32}
    return hf.Qwen3_5MoeForCausalLM(hf.Qwen3_5MoeTextConfig(**SHAPE, **HYBRID, **EXPERTS, **shared))


def _qwen3_next() -> PreTrainedModel:
    shared = {"shared_expert_intermediate_size": 32}
    return hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**SHAPE, **HYBRID, **EXPERTS, **shared))


def _llama() -> PreTrainedModel:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, rope_parameters=rope, tie_word_embeddings=True))


def _mistral() -> PreTrainedModel:
    return hf.MistralForCausalLM(hf.MistralConfig(**SHAPE, sliding_window=6))


def mistral3() -> hf.PreTrainedModel:
    """A class that transformers does not count among the causal language models; its head is tied."""
    text = {**SHAPE, "model_type": "mistral"}
    vision = {**VISION, "model_type": "pixtral", "head_dim": 16}
    return hf.Mistral3ForConditionalGeneration(
        hf.Mistral3Config(text_config=text, vision_config=vision, image_token_index=90)
    )


def _mistral3_text() -> PreTrainedModel:
    """The text model of such a checkpoint, as it is loaded."""
    with TemporaryDirectory() as folder:
        mistral3().save_pretrained(folder)
        words = {"revision_key": "", "own_code": "", "too_big": ""}
        return ModelSource("target", folder, None, **words).load_model("auto")


def gemma2(**changes: object) -> PreTrainedModel:
    caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
    window = {"sliding_window": 6, "query_pre_attn_scalar": 24, "layer_types": SLIDING}
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**{**SHAPE, **caps, **window, **changes}))


def _gemma3() -> PreTrainedModel:
    window = {"sliding_window": 6, "query_pre_attn_scalar": 16, "num_hidden_layers": 6}
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**{**SHAPE, **window}))


def _gemma3_int8() -> PreTrainedModel:
    """A method of quantisation of our own, which loads no package: 8 bits in every matrix but attention's."""
    model = _gemma3().requires_grad_(False)
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Int8Linear(getattr(layer.mlp, name)))
    model.lm_head = Int8Linear(model.lm_head)
    model.model.embed_tokens = Int8Embedding(model.model.embed_tokens)
    return model


def gemma4(**changes: object) -> PreTrainedModel:
    shape = {
        **SHAPE,
        "layer_types": SLIDING,
        "sliding_window": 6,
        "global_head_dim": 32,
        "final_logit_softcapping": 10.0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "num_kv_shared_layers": 2,
        **changes,
    }
    return hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**shape))


def _gemma4_large() -> PreTrainedModel:
    """As the larger ones are: experts, values that are the keys, nothing shared between layers."""
    return gemma4(
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    )


def _gpt_oss() -> PreTrainedModel:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1.5e5,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 64,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6, "layer_types": SLIDING}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**SHAPE, **experts, rope_parameters=rope))


def _deepseek_v3() -> PreTrainedModel:
    latent = {
        "q_lora_rank": 24,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "num_key_value_heads": 4,
    }
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    }
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**{**shape, **latent, **experts}))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "Qwen3": _qwen3,
    "Qwen3, sliding window, tied": _qwen3_window,
    "Qwen3-MoE": _qwen3_moe,
    "Qwen3.5": _qwen3_5,
    "Qwen3.5-MoE": _qwen3_5_moe,
    "Qwen3-Next": _qwen3_next,
    "Llama 3, tied": _llama,
    "Mistral": _mistral,
    MULTIMODAL: _mistral3_text,
    "Gemma 2": gemma2,
    "Gemma 3": _gemma3,
    "Gemma 3, 8-bit weights": _gemma3_int8,
    "Gemma 4, shared keys": gemma4,
    "Gemma 4, experts": _gemma4_large,
    "GPT-OSS": _gpt_oss,
    "DeepSeek-V3": _deepseek_v3,
}


@cache
def plain(family: str) -> PreTrainedModel:
    """The family's model as transformers runs it, float32; not to be changed."""
    return random(FAMILIES[family])


def random(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model that runs as transformers' plain code, whose norms, too, are random."""
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    torch.manual_seed(1)
    for weight in model.parameters():  # norms, sinks and biases that begin as ones or zeros
        if weight.ndim == 1:
            weight.add_(0.2 * torch.randn_like(weight))
    model.set_attn_implementation("eager")
    return model


def save(family: str, folder: str) -> None:
    """The weights of :func:`plain`, laid out as such a checkpoint is, with a tokenizer."""
    model = plain(family)
    if family == MULTIMODAL:
        whole = mistral3()
        whole.model.language_model.load_state_dict(model.model.state_dict())
        model = whole
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@cache
def target(family: str) -> Target:
    """The same model as a target, with a token id that is free for masks."""
    made = make_target(copy.deepcopy(plain(family)), name=family)
    return replace(made, info=replace(made.info, mask_token_id=VOCAB - 1))
