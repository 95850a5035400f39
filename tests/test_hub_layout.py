"""The real target's path: a folder laid out as the hub lays it out, in Qwen3-0.6B's shapes at random weights.

Sharded safetensors with an index, V = 151,936 and a chat template: three training steps with an interruption
and a resume, evaluation, generation. Nothing is learned; every line a real model takes is run.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import deepspec
from deepspec.config import EvalConfig, RunConfig
from deepspec.engine import SamplingParams
from deepspec.errors import TrainingError
from deepspec.types import StepRecord
from tests.tiny_runs import save_prompts
from tests.tiny_tokenizer import tokenizer

VOCAB = 151_936


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hub") / "Qwen3-0.6B"
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        Qwen3ForCausalLM(config).save_pretrained(folder, max_shard_size="400MB")
    finally:
        torch.set_default_dtype(before)
    tokenizer().save_pretrained(folder)
    yield folder
    for shard in folder.glob("*.safetensors"):
        shard.unlink()


def _config(target: Path, data: Path) -> RunConfig:
    strategy = deepspec.Strategy.named("dspark").replace(
        drafter={"num_layers": 1, "num_target_layers": 2, "intermediate_size": 256}, head={"rank": 8}
    )
    return RunConfig.model_validate(
        {
            "strategy": strategy.model_dump(),
            "target": {"name": str(target), "dtype": "bfloat16"},
            "data": {"paths": [str(data)], "sequence_length": 48, "held_out_fraction": 0.3},
            "train": {
                "num_steps": 3,
                "sequences_per_step": 1,
                "anchors_per_sequence": 3,
                "checkpoint_every": 100,
                "validate_every": 100,
                "log_every": 1,
            },
            "device": "cpu",
        }
    )


def _chats(path: Path) -> Path:
    turns = [
        {"role": "user", "content": "Say it."},
        {"role": "assistant", "content": "the cat sat on the mat and looked at the rain for a long while"},
    ]
    path.write_text((json.dumps({"messages": turns}) + "\n") * 6)
    return path


def test_train_resume_evaluate_and_generate_on_a_hub_folder(hub_folder: Path, tmp_path: Path) -> None:
    assert len(list(hub_folder.glob("model-*.safetensors"))) > 1
    assert (hub_folder / "model.safetensors.index.json").exists()
    config, out = _config(hub_folder, _chats(tmp_path / "chats.jsonl")), tmp_path / "run"

    def interrupt(record: StepRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingError, match="--resume"):
        deepspec.train(config.strategy, config=config, out=out, observers=[interrupt])
    run = deepspec.train(config.strategy, config=config, out=out, resume=True)
    assert run.step == 3
    assert run.target.info.vocab_size == VOCAB

    prompts = save_prompts(tmp_path / "prompts.jsonl", ["the cat", "a dog"])
    report = deepspec.evaluate(
        run, tasks=[f"mine={prompts}"], config=EvalConfig(num_prompts=2, max_tokens=3, batch=2)
    ).to_json()
    assert report["accepted_length"]["mean"] >= 1
    assert report["draft_length"] == 7

    greedy = SamplingParams(max_tokens=3, temperature=0.0)
    text = "".join(deepspec.generate(run, "the cat", params=greedy))
    plain = deepspec.generate(
        run, "the cat", params=SamplingParams(max_tokens=3, temperature=0.0), plain=True
    )
    assert isinstance(text, str)
    assert "".join(plain) == text
