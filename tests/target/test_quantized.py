"""Targets with quantised weights: whatever form a layer keeps them in, drafters find matrices to share."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor  # torch's own example of a tensor made of tensors

from deepspec.config import TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import TargetError
from deepspec.target import Target, fingerprint, load_target
from tests.exact_statistics.compositions import build
from tests.families import plain
from tests.families import target as family_target
from tests.tiny_tokenizer import tokenizer

FAMILY = "Gemma 3, 8-bit weights"  # with scaled embeddings


@pytest.fixture(scope="module")
def target() -> Target:
    return family_target(FAMILY)


def test_embedding_and_lm_head_are_matrices_of_what_the_layers_compute(target: Target) -> None:
    info, model = target.info, target.model
    torch.testing.assert_close(info.lm_head, model.lm_head.matrix, atol=1e-6, rtol=0)
    embedding = model.model.embed_tokens
    torch.testing.assert_close(info.embedding, embedding.weight * embedding.scale, atol=1e-6, rtol=0)
    assert info.embedding_scale == pytest.approx(48**0.5)
    assert info.embedding.dtype == info.lm_head.dtype == target.dtype == torch.float32


@torch.no_grad()
def test_a_quantised_target_decodes_as_it_does_plainly(target: Target) -> None:
    prompts, params = [[1, 2, 3], [4, 5]], SamplingParams(temperature=0.0, max_tokens=8, ignore_stop=True)
    drafted = Engine(target, build(target.info, "dspark", 3, torch.float32)).run(prompts, params)
    assert [done.tokens for done in drafted] == [done.tokens for done in Engine(target).run(prompts, params)]


def test_the_fingerprint_reads_what_a_tensor_is_stored_as() -> None:
    def mark(change: float) -> str:
        model = copy.deepcopy(plain("Gemma 3"))
        weight = model.model.layers[0].mlp.up_proj.weight.detach()
        wrapped = TwoTensor(weight, weight + change)
        model.model.layers[0].mlp.up_proj.weight = nn.Parameter(wrapped, requires_grad=False)
        return fingerprint(model)

    assert mark(0.0) == mark(0.0) != mark(1.0)


def test_quantised_files_that_need_another_package_are_refused_in_one_line(tmp_path: Path) -> None:
    plain("Qwen3").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TargetError) as refused:
        load_target(TargetConfig(name=str(tmp_path)), device="cpu")
    assert "\n" not in str(refused.value)
    assert "pip install" in str(refused.value)
