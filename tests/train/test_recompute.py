"""Gradient checkpointing: the same gradients to the last bit, from fewer tensors that are kept."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from deepspec.config import RunConfig
from deepspec.errors import ConfigError
from deepspec.interfaces import BuildContext
from deepspec.nn import DecoderLayer
from deepspec.plugins import create_plugin_manager
from deepspec.strategy import Strategy
from deepspec.target import Target
from deepspec.train import train
from deepspec.train.estimate import estimate
from deepspec.train.recompute import recompute_layers
from deepspec.train.trainer import StepResult, Trainer, make_objective, memory_advice
from deepspec.types import TokenBatch
from tests.exact.made_parts import Still
from tests.exact_statistics.compositions import build, tiny_target
from tests.tiny_runs import config

CPU = torch.device("cpu")
VOCAB = 60
DRAFTERS: list[tuple[str, dict[str, Any]]] = [
    ("dspark", {"num_layers": 3}),
    ("eagle3", {"num_layers": 3}),
    ("mtp", {}),
    ("mtp", {"modules": "each"}),
    ("draft_model", {}),
]


@pytest.fixture(scope="module")
def tiny() -> Target:
    return tiny_target(VOCAB, torch.float32, hidden_size=48, intermediate_size=64, num_hidden_layers=4)


def _text(width: int = 32) -> TokenBatch:
    tokens = torch.randint(0, VOCAB - 1, (2, width), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(width) >= width // 2).long().expand_as(tokens)
    positions = torch.arange(width).expand_as(tokens) % (width // 2)
    return TokenBatch(tokens, segments, positions, torch.ones_like(tokens, dtype=torch.bool))


def trainer(target: Target, name: str, drafter: dict[str, Any], **settings: Any) -> Trainer:
    parts = build(target.info, name, 3, torch.float32, drafter=drafter, objective={"terms": {"ce": 1.0}})
    sizes = {"anchors_per_sequence": 4, "gradient_checkpointing": False, **settings}
    return Trainer(
        parts,
        target,
        objective=make_objective(parts, target, create_plugin_manager()),
        sampler=SimpleNamespace(batch=lambda number: _text()),
        config=RunConfig.model_validate({"strategy": parts.strategy, "train": sizes}),
        device=CPU,
    )


def learned(made: Trainer) -> tuple[dict[str, Tensor], int]:
    """The gradients of the first step, and the bytes that its graph keeps for the way back."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        made.learn(made.sampler.batch(0), 0, measure=False)
    named = made.modules.named_parameters()
    return {name: weight.grad for name, weight in named if weight.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "drafter"), DRAFTERS)
def test_gradients_stay_the_same_and_less_is_kept(
    tiny: Target, name: str, drafter: dict[str, Any], precision: str
) -> None:
    kept, whole = learned(trainer(tiny, name, drafter, precision=precision))
    again, few = learned(trainer(tiny, name, drafter, precision=precision, gradient_checkpointing=True))
    assert kept.keys() == again.keys()
    assert len(kept) > 5
    assert [key for key, gradient in kept.items() if not gradient.equal(again[key])] == []
    assert few < 0.75 * whole


def test_a_drafter_without_layers_to_compute_again_is_refused(tiny: Target) -> None:
    bare = Still(Still.Config(), BuildContext(tiny.info, draft_length=3))
    with pytest.raises(ConfigError, match="gradient_checkpointing: drafter 'still' has no layer.*to false"):
        recompute_layers(bare)


def test_a_model_of_its_own_trains_and_decodes_while_it_does(target, text, tmp_path):
    chosen = Strategy.named("draft_model").replace(draft_length=3)
    sizes = {"num_steps": 1, "gradient_checkpointing": True}
    settings = config(target, text, chosen=chosen, train=sizes)
    train(settings.strategy, config=settings, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (validation,) = [line for line in lines if line["kind"] == "validation"]
    assert validation["accepted_length"] >= 1.0


def test_a_dry_run_takes_the_steps_that_the_run_will(target, text, monkeypatch) -> None:
    seen = []
    step = Trainer.step

    def watched(self: Trainer, number: int, *, measure: bool) -> StepResult:
        seen.append([m.recomputed for m in self.drafter.modules() if isinstance(m, DecoderLayer)])
        return step(self, number, measure=measure)

    monkeypatch.setattr(Trainer, "step", watched)
    settings = config(target, text, train={"gradient_checkpointing": True})
    estimate(settings)
    assert seen == [[True], [True]]
    assert "gradient_checkpointing" not in memory_advice(settings.train)
    assert "train.gradient_checkpointing=true" in memory_advice(config(target, text).train)
