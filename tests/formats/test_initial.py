"""``train --init-from`` takes another project's checkpoint: its strategy, its weights, a fresh optimiser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deepspec.cli.train import _settings
from deepspec.errors import ConfigError, TargetError
from deepspec.plugins import create_plugin_manager
from deepspec.target import make_target
from deepspec.train.initial import settings_of
from deepspec.train.prepare import prepare
from tests.formats import foreign as f
from tests.tiny_models import make
from tests.tiny_runs import config, save_text
from tests.tiny_tokenizer import tokenizer


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """On disk, and with as many tokens as its tokenizer has."""
    folder = tmp_path_factory.mktemp("target")
    make("qwen3", torch.float32, vocab_size=260).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def wide(monkeypatch, target):
    """The fixtures' checkpoints for that target."""
    monkeypatch.setattr(f, "VOCAB", 260)
    monkeypatch.setattr(f, "MASK", 259)
    return make_target(AutoModelForCausalLM.from_pretrained(target), name="wide")


@pytest.mark.parametrize(
    ("write", "ours"),
    [
        (lambda folder, target: f.sglang_dflash(folder, target, "vanilla"), "head.markov_w1.weight"),
        (f.sglang_eagle3, "drafter.vocabulary.lm_head"),
    ],
)
def test_training_starts_from_a_foreign_checkpoint(write, ours, wide, target, tmp_path):
    folder = write(tmp_path / "theirs", wide)
    flags = {"out": None, "train.init_from": str(folder), "target.name": str(target), "device": "cpu"}
    found = _settings(None, None, flags, [], resume=False)
    assert found.target.name == str(target)
    text = save_text(tmp_path / "text.jsonl")
    settings = config(target, text, chosen=found.strategy, train={"init_from": str(folder), "num_steps": 1})
    ready = prepare(
        settings, tmp_path / "run", resume=False, check_tasks=False, manager=create_plugin_manager()
    )
    weights = ready.trainer.parts.modules().state_dict()
    theirs = load_file(folder / "model.safetensors")
    name = {"head.markov_w1.weight": "markov_head.markov_w1.weight"}.get(ours, "lm_head.weight")
    assert torch.equal(weights[ours], theirs[name])
    assert ready.init_from is not None
    assert ready.init_from["layout"].startswith("sglang-")
    changed = settings.model_copy(update={"strategy": found.strategy.replace(drafter={"num_layers": 3})})
    if "dflash" in found.strategy.drafter.type:
        with pytest.raises(ConfigError, match="its weights are those of 'dspark'"):
            prepare(
                changed, tmp_path / "no", resume=False, check_tasks=False, manager=create_plugin_manager()
            )


def test_a_target_is_taken_where_the_checkpoint_names_one(wide, tmp_path):
    folder = f.speculators_dflash(tmp_path, wide)
    assert settings_of(str(folder))["target"] == {"name": "tiny-target"}
    assert "target" not in settings_of(str(f.deepspec_dspark(tmp_path / "b", wide)))


def test_neither_a_run_nor_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": []}))
    with pytest.raises(TargetError, match="--init-from .* cannot be read"):
        settings_of(str(tmp_path))
