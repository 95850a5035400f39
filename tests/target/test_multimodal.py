"""Checkpoints of models that also see: their text model is the target, whatever names the files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from deepspec.config import TargetConfig
from deepspec.errors import TargetError
from deepspec.target import load_target
from deepspec.target.head import load_head
from deepspec.types import Span
from tests.families import HYBRID, SHAPE, VISION, mistral3, plain
from tests.tiny_tokenizer import tokenizer


def gemma3() -> hf.PreTrainedModel:
    text = {**SHAPE, "sliding_window": 6, "query_pre_attn_scalar": 16, "num_hidden_layers": 6}
    tokens = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=VISION, **tokens)
    )


def qwen3_5() -> hf.PreTrainedModel:
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {name: 90 + number for number, name in enumerate(names)}
    return hf.Qwen3_5ForConditionalGeneration(
        hf.Qwen3_5Config(
            text_config={**SHAPE, **HYBRID},
            vision_config={**vision, "patch_size": 14, "num_position_embeddings": 16},
            **tokens,
        )
    )


def gemma4() -> hf.PreTrainedModel:
    text = plain("Gemma 4, shared keys").config.to_dict()
    return hf.Gemma4ForConditionalGeneration(
        hf.Gemma4Config(text_config=text, vision_config=VISION, audio_config=None)
    )


def save(model: hf.PreTrainedModel, folder: Path) -> TargetConfig:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return TargetConfig(name=str(folder))


@pytest.mark.parametrize("make", [gemma3, mistral3, qwen3_5, gemma4])
@torch.no_grad()
def test_the_text_model_is_the_target(
    make: Callable[[], hf.PreTrainedModel], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    config = save(model, tmp_path)
    capfd.readouterr()
    target = load_target(config, device="cpu")
    head = load_head(config, device="cpu", fingerprint="")
    assert "UNEXPECTED" not in capfd.readouterr().err
    assert not any("vision" in name or "visual" in name for name, _ in target.model.named_modules())
    text = torch.arange(1, 40)
    logits = target.logits(target.forward(text, [Span(0, 0, 39)], None, ()).last_hidden)
    torch.testing.assert_close(logits, model(input_ids=text[None]).logits[0], atol=5e-5, rtol=0)
    assert head.info.lm_head.equal(target.info.lm_head)
    assert (head.info.num_layers, head.info.rope) == (target.info.num_layers, target.info.rope)
    first = head.layer(0).state_dict()
    assert first
    assert all(tensor.equal(target.layer(0).state_dict()[name]) for name, tensor in first.items())


def test_weights_that_the_files_lack_are_refused_and_not_made_up(tmp_path: Path) -> None:
    config = save(gemma3(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["language_model.model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TargetError, match="lack 1 of its weights, model.layers.2.mlp.up_proj.weight"):
        load_target(config, device="cpu")
