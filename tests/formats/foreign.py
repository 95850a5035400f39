"""Foreign checkpoints on disk, as their descriptions have them, with random weights for a tiny target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepspec.target import Target, make_target
from tests.formats.forwards import Shape
from tests.tiny_models import VOCAB, make

H, KV_HEADS, HEADS, HEAD_DIM, MLP, RANK = 48, 1, 3, 16, 40, 5
TAPS, MASK = (0, 2), VOCAB - 1
SHAPE = Shape(HEADS, KV_HEADS, HEAD_DIM, theta=5000.0, eps=1e-5)
GEMMA = Shape(HEADS, KV_HEADS, HEAD_DIM, theta=5000.0, eps=1e-5, is_gemma=True, share=0.5, softcap=6.0)


def tiny_target(family: str = "qwen3") -> Target:
    changes = {"final_logit_softcapping": 6.0, "num_hidden_layers": 4} if family == "gemma3" else {}
    return make_target(make(family, torch.float32, **changes), name="tiny-target")


def values(*shape: int, scale: float = 0.2) -> Tensor:
    return torch.randn(shape) * scale


def layer_tensors(
    prefix: str, *, in_size: int = H, qk_norm: bool = True, is_gemma: bool = False
) -> dict[str, Tensor]:
    """One decoder layer; Gemma's has K = V and four norms."""
    found = {
        "self_attn.q_proj.weight": values(HEADS * HEAD_DIM, in_size),
        "self_attn.k_proj.weight": values(KV_HEADS * HEAD_DIM, in_size),
        "self_attn.v_proj.weight": values(KV_HEADS * HEAD_DIM, in_size),
        "self_attn.o_proj.weight": values(H, HEADS * HEAD_DIM),
        "self_attn.q_norm.weight": 1 + values(HEAD_DIM),
        "self_attn.k_norm.weight": 1 + values(HEAD_DIM),
        "mlp.gate_proj.weight": values(MLP, H),
        "mlp.up_proj.weight": values(MLP, H),
        "mlp.down_proj.weight": values(H, MLP),
        "input_layernorm.weight": 1 + values(H),
        "post_attention_layernorm.weight": 1 + values(H),
    }
    if not qk_norm:
        del found["self_attn.q_norm.weight"], found["self_attn.k_norm.weight"]
    if is_gemma:
        del found["self_attn.v_proj.weight"]
        found["pre_feedforward_layernorm.weight"] = 1 + values(H)
        found["post_feedforward_layernorm.weight"] = 1 + values(H)
        found["layer_scalar"] = torch.tensor([0.7])
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def backbone(num_layers: int = 2, *, is_gemma: bool = False) -> dict[str, Tensor]:
    """The DFlash family's shared names."""
    found = {
        "fc.weight": values(H, len(TAPS) * H),
        "hidden_norm.weight": 1 + values(H),
        "norm.weight": 1 + values(H),
    }
    for number in range(num_layers):
        found |= layer_tensors(f"layers.{number}.", is_gemma=is_gemma)
    return found


def head_tensors(kind: str, vocab: int | None = None, *, with_token: bool = True) -> dict[str, Tensor]:
    """A sequential head and a confidence head."""
    found = {
        "markov_head.markov_w1.weight": values(VOCAB, RANK, scale=1.0),
        "markov_head.markov_w2.weight": values(vocab or VOCAB, RANK),
        "confidence_head.proj.weight": values(1, H + (RANK if with_token else 0)),
        "confidence_head.proj.bias": values(1),
    }
    if kind == "gated":
        found |= {
            "markov_head.gate_proj.weight": values(RANK, H + RANK),
            "markov_head.gate_proj.bias": values(RANK),
        }
    if kind == "rnn":
        found["markov_head.joint_proj.weight"] = values(3 * RANK, 2 * RANK + H)
        found["markov_head.joint_proj.bias"] = values(3 * RANK)
    return found


def decoder(num_layers: int = 2, model_type: str = "qwen3") -> dict[str, Any]:
    """A decoder's configuration."""
    return {
        "model_type": model_type,
        "hidden_size": H,
        "intermediate_size": MLP,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": SHAPE.eps,
        "rope_theta": SHAPE.theta,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "torch_dtype": "float32",
        "a_field_of_theirs": [1, {"kept": True}],
    }


def gemma_decoder(num_layers: int = 2) -> dict[str, Any]:
    """Gemma 4's, whose draft layers are all of its full-attention kind."""
    rope = {"rope_type": "proportional", "rope_theta": GEMMA.theta, "partial_rotary_factor": GEMMA.share}
    return {
        **decoder(num_layers, "gemma4_text"),
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 8,
        "global_head_dim": HEAD_DIM,
        "num_key_value_heads": 3,
        "num_global_key_value_heads": KV_HEADS,
        "attention_k_eq_v": True,
        "enable_moe_block": False,
        "final_logit_softcapping": GEMMA.softcap,
        "layer_types": ["full_attention"] * num_layers,
        "rope_parameters": {"full_attention": rope, "sliding_attention": {"rope_theta": 1e4}},
    }


def save(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def reduced(target: Target, size: int = 40) -> tuple[Tensor, dict[str, Tensor]]:
    """Token ids of a reduced vocabulary, and its tensors."""
    ids = torch.randperm(VOCAB - 1)[:size].sort().values
    t2d = torch.zeros(VOCAB, dtype=torch.bool)
    t2d[ids] = True
    return ids, {
        "d2t": ids - torch.arange(size),
        "t2d": t2d,
        "lm_head.weight": target.info.lm_head[ids].clone(),
    }


def deepspec_dspark(
    folder: Path, target: Target, kind: str | None = "vanilla", *, is_gemma: bool = False
) -> Path:
    """DeepSpec's; without a kind it is a DFlash."""
    config = gemma_decoder() if is_gemma else decoder()
    config |= {
        "architectures": ["Gemma4DSparkModel" if is_gemma else "Qwen3DSparkModel"],
        "num_target_layers": 4,
        "block_size": 4,
        "tie_word_embeddings": False,
        "layer_types": ["full_attention"] * 2,
        "mask_token_id": MASK,
        "target_layer_ids": list(TAPS),
        "num_anchors": 512,
        "enable_confidence_head": kind is not None,
        "markov_rank": RANK if kind else 0,
    }
    tensors = {
        **backbone(is_gemma=is_gemma),
        "embed_tokens.weight": target.info.embedding.clone(),
        "lm_head.weight": target.info.lm_head.clone(),
    }
    if kind:
        config |= {"markov_head_type": kind, "confidence_head_with_markov": kind != "rnn"}
        tensors |= head_tensors(kind, with_token=kind != "rnn")
    return save(folder, config, tensors)


def sglang_dflash(folder: Path, target: Target, kind: str | None = None, *, flat: bool = False) -> Path:
    """z-lab's, SpecForge's and SGLang's; ``flat`` is ModelOpt's."""
    nested: dict[str, Any] = {
        "mask_token_id": MASK,
        "target_layer_ids": list(TAPS),
        "projector_type": "theirs",
    }
    config = {
        **decoder(),
        "architectures": ["DSparkDraftModel" if kind else "DFlashDraftModel"],
        "block_size": 4 if kind else 5,
        "num_target_layers": 4,
    }
    tensors = backbone()
    if kind:
        nested |= {"markov_rank": RANK, "markov_head_type": kind, "enable_confidence_head": True}
        nested["confidence_head_with_markov"] = True
        heads = head_tensors(kind)
        if flat:
            heads = {
                name.removeprefix("markov_head.").replace("confidence_head.proj", "confidence_proj"): tensor
                for name, tensor in heads.items()
            }
        tensors |= heads
    return save(folder, {**config, "dflash_config": nested}, tensors)


def proposal(algorithm: str, num_tokens: int) -> dict[str, Any]:
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": num_tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "algorithm": algorithm,
        "proposal_methods": [method],
        "default_proposal_method": "greedy",
        "verifier": {"name_or_path": "tiny-target", "architectures": ["Qwen3ForCausalLM"]},
    }


def speculators_dflash(
    folder: Path, target: Target, kind: str | None = None, *, vocab: int | None = None, **changes: Any
) -> Path:
    """speculators' DFlash, with a kind of head its DSpark."""
    algorithm = "dspark" if kind else "dflash"
    config = {
        "speculators_model_type": algorithm,
        "architectures": ["DSparkSpeculator" if kind else "DFlashSpeculator"],
        "transformer_layer_config": decoder(),
        "draft_vocab_size": vocab or VOCAB,
        "block_size": 4 if kind else 5,
        "aux_hidden_state_layer_ids": [layer + 1 for layer in TAPS],
        "mask_token_id": MASK,
        "speculators_config": proposal(algorithm, 4),
        "a_field_of_theirs": "kept",
    }
    tensors = backbone()
    if vocab:
        tensors |= reduced(target, vocab)[1]
    if kind:
        config |= {"markov_rank": RANK, "markov_head_type": kind, "enable_confidence_head": True}
        config |= {"confidence_head_with_markov": True, "sample_from_anchor": True}
        tensors |= head_tensors(kind, vocab or VOCAB)
    return save(folder, {**config, **changes}, tensors)


def deepspec_eagle3(folder: Path, target: Target, *, is_gemma: bool = False) -> Path:
    config = gemma_decoder(1) if is_gemma else decoder(1)
    config |= {
        "architectures": ["Gemma4Eagle3Model" if is_gemma else "Qwen3Eagle3Model"],
        "num_target_layers": 4,
        "target_layer_ids": list(TAPS),
        "ttt_length": 4,
        "step_loss_decay": 0.8,
        "draft_num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "tie_word_embeddings": False,
    }
    tensors = {
        **eagle3_tensors("layers.0.", is_gemma=is_gemma),
        "embed_tokens.weight": target.info.embedding.clone(),
        "lm_head.weight": target.info.lm_head.clone(),
    }
    return save(folder, config, tensors)


def eagle3_tensors(
    prefix: str, *, taps: int = 2, qk_norm: bool = True, is_gemma: bool = False
) -> dict[str, Tensor]:
    return {
        "fc.weight": values(H, taps * H),
        "norm.weight": 1 + values(H),
        f"{prefix}hidden_norm.weight": 1 + values(H),
        **layer_tensors(prefix, in_size=2 * H, qk_norm=qk_norm, is_gemma=is_gemma),
    }


def speculators_eagle3(
    folder: Path, target: Target, *, model_type: str = "qwen3", vocab: int | None = None, **changes: Any
) -> Path:
    """speculators' Eagle 3; a LM head that is not the target's, as older releases trained it."""
    config = {
        "speculators_model_type": "eagle3",
        "architectures": ["Eagle3Speculator"],
        "transformer_layer_config": decoder(1, model_type),
        "draft_vocab_size": vocab or VOCAB,
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in TAPS],
        "norm_before_residual": False,
        "speculators_config": proposal("eagle3", 4),
        **changes,
    }
    tensors = eagle3_tensors("layers.0.", qk_norm=model_type == "qwen3")
    if vocab:
        tensors |= reduced(target, vocab)[1]
    tensors |= {
        "lm_head.weight": values(vocab or VOCAB, H),
        "embed_tokens.weight": target.info.embedding.clone(),
    }
    if config.get("norm_before_fc"):
        tensors["input_norm.weight"] = 1 + values(len(TAPS) * H)
    if config.get("fc_norm"):
        tensors |= {f"fc_norm.{tap}.weight": 1 + values(H) for tap in range(len(TAPS))}
    return save(folder, config, tensors)


def sglang_eagle3(folder: Path, target: Target, *, vocab: int | None = 40, **changes: Any) -> Path:
    """``LlamaForCausalLMEagle3`` with three taps."""
    config = {
        **decoder(1, "llama"),
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": vocab or VOCAB,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2], "use_aux_hidden_state": True},
        **changes,
    }
    tensors = eagle3_tensors("midlayer.", taps=3, qk_norm=False)
    tensors |= reduced(target, vocab)[1] if vocab else {}
    return save(folder, config, {**tensors, "lm_head.weight": values(vocab or VOCAB, H)})
