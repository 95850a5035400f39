"""Operations of a training step against arithmetic by hand on a tiny model."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import torch
from torch import nn

from deepspec.config import RunConfig
from deepspec.plugins import create_plugin_manager
from deepspec.records import TrainingCost
from deepspec.runs import checkpoint_path, load
from deepspec.train import train
from deepspec.train.anchors import sample_anchors
from deepspec.train.assemble import assemble
from deepspec.train.flops import count_flops, count_step
from deepspec.train.trainer import Trainer, make_objective
from deepspec.types import TokenBatch
from tests.tiny_models import VOCAB, masked_target
from tests.tiny_runs import config, strategy

CPU = torch.device("cpu")
ROWS, LENGTH, ANCHORS, DRAFTED = 2, 16, 2, 3
#: Of ``tests.tiny_models``: D, heads, kv heads, head size, MLP width, layers.
SIZE, HEADS, KV_HEADS, HEAD_SIZE, WIDTH, LAYERS = 48, 4, 2, 16, 64, 4
TAPPED = 1  # of a target this shallow
#: Multiplications of one token with the matrices of one decoder layer.
KEYS_VALUES = 2 * SIZE * KV_HEADS * HEAD_SIZE
LAYER = 2 * SIZE * HEADS * HEAD_SIZE + KEYS_VALUES + 3 * SIZE * WIDTH


def small_trainer(*, accumulation: int = 1) -> Trainer:
    """A one-layer DFlash drafter on two rows of one document each."""
    chosen = strategy("dflash", draft_length=DRAFTED)
    sizes = {"anchors_per_sequence": ANCHORS, "accumulation": accumulation}
    settings = RunConfig.model_validate({"strategy": chosen, "train": sizes, "device": "cpu"})
    target = masked_target()
    parts = assemble(chosen, target, device=CPU, dtype=torch.float64, seed=0)
    shape = (ROWS, LENGTH)
    tokens = torch.randint(3, VOCAB - 1, shape, generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(
        tokens=tokens,
        segments=torch.zeros(shape, dtype=torch.int64),
        positions=torch.arange(LENGTH).expand(shape),
        supervised=torch.ones(shape, dtype=torch.bool),
    )
    objective = make_objective(parts, target, create_plugin_manager())
    sampler = SimpleNamespace(batch=lambda number: batch)
    return Trainer(parts, target, objective=objective, sampler=sampler, config=settings, device=CPU)


def test_a_step_takes_what_arithmetic_by_hand_says() -> None:
    trainer = small_trainer()
    batch = trainer.sampler.batch(0)
    blocks = sample_anchors(batch, ANCHORS, draft_length=DRAFTED, seed=0, step=0)
    assert len(blocks.rows) == ROWS * ANCHORS
    tokens, slots = ROWS * LENGTH, ROWS * ANCHORS * DRAFTED
    own = ANCHORS * DRAFTED  # a row's slots
    target = LAYERS * (tokens * LAYER + 2 * ROWS * HEADS * LENGTH * LENGTH * HEAD_SIZE)
    fused = tokens * TAPPED * SIZE * SIZE  # its input needs no gradient
    layer = tokens * KEYS_VALUES + slots * LAYER  # weight and input gradients: twice as much again
    attention = 2 * ROWS * HEADS * own * (LENGTH + own) * HEAD_SIZE  # backward: five products for two
    logits = int(blocks.valid.sum()) * SIZE * VOCAB  # through frozen weights
    drafter = 2 * fused + 3 * layer + (1 + 5 / 2) * attention + 2 * logits
    found = count_step(trainer)
    rotary = ROWS * LENGTH * HEAD_SIZE // 2  # a product in transformers 5.10, since then none
    assert found.target in (2 * target, 2 * (target + rotary))
    assert found.total - found.target == 2 * drafter


def test_counting_leaves_no_gradient_behind_and_parts_of_a_step_add_up() -> None:
    trainer = small_trainer(accumulation=2)
    assert count_step(trainer) == count_step(small_trainer())
    assert all(parameter.grad is None for parameter in trainer.modules.parameters())


def test_attention_with_grouped_queries_counts_its_whole_rectangle() -> None:
    query = torch.randn(2, 4, 6, 8, requires_grad=True)
    key, value = (torch.randn(2, 2, 10, 8, requires_grad=True) for _ in range(2))

    def attend() -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    products = 2 * 2 * 4 * 6 * 10 * 8
    assert count_flops(attend)[1] == 2 * products
    assert count_flops(lambda: attend().sum().backward())[1] == 7 * products


def test_what_a_run_took_goes_on_through_a_resume_and_an_older_run_does_not_say(target, text, tmp_path):
    settings = config(target, text, train={"num_steps": 4, "checkpoint_every": 2})
    whole = train(settings.strategy, config=settings, out=tmp_path / "run").cost
    assert load(tmp_path / "run", device="cpu").cost == whole
    shutil.rmtree(checkpoint_path(tmp_path / "run", 4))
    state = checkpoint_path(tmp_path / "run", 2) / "state.json"
    half = json.loads(state.read_text())
    assert whole.train_flops == 2 * half["train_flops"] > 2 * half["train_flops_target"] > 0
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    resumed = train(settings.strategy, config=settings, out=tmp_path / "run", resume=True).cost
    assert (resumed.train_tokens, resumed.train_flops) == (whole.train_tokens, whole.train_flops)
    assert resumed.train_seconds > half["train_seconds"] > 0
    older = checkpoint_path(tmp_path / "older", 2) / "state.json"
    older.write_text(json.dumps({key: value for key, value in half.items() if "flops" not in key}))
    resumed = train(settings.strategy, config=settings, out=tmp_path / "older", resume=True).cost
    assert resumed == TrainingCost(whole.train_tokens, resumed.train_seconds, None, None)
