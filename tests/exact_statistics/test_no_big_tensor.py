"""With a large vocabulary nothing as large as all logits is ever made: training grades a chunk of slots at a
time, and decoding asks for the rows that it verifies and for each prompt's last.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepspec.config import RunConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.plugins import create_plugin_manager
from deepspec.sampling.categorical import BLOCK
from deepspec.target import Target
from deepspec.train.trainer import Trainer, make_objective
from deepspec.types import Features, TokenBatch
from tests.exact_statistics.compositions import STRATEGIES, build, tiny_target

VOCAB = 10 * BLOCK  # a multiple, so that drawing by block pads nothing
NUM_REQUESTS, DRAFT_LENGTH, LENGTH = 2, 3, 60
CHUNK = 64  # rows graded at a time
CPU = torch.device("cpu")


class BigTensorError(Exception):
    """An operation made a tensor over the limit."""


class NoBigTensor(TorchDispatchMode):
    """Refuses new tensors (views and in-place results are none) of more than ``rows`` rows of logits."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.limit = rows * VOCAB

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        known = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.numel() > self.limit and _storage(made) not in known:
                raise BigTensorError(f"{func} made {tuple(made.shape)}")
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB, torch.float32)


def _text() -> TokenBatch:
    tokens = torch.randint(0, VOCAB - 1, (NUM_REQUESTS, LENGTH), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(LENGTH).expand_as(tokens)
    return TokenBatch(tokens, torch.zeros_like(tokens), positions, torch.ones_like(tokens, dtype=torch.bool))


def _trainer(target: Target, name: str) -> Trainer:
    parts = build(target.info, name, DRAFT_LENGTH, torch.float32)
    config = RunConfig.model_validate({"strategy": parts.strategy, "train": {"anchors_per_sequence": 40}})
    objective = make_objective(parts, target, create_plugin_manager())
    sampler = SimpleNamespace(batch=lambda number: _text())
    return Trainer(parts, target, objective=objective, sampler=sampler, config=config, device=CPU)


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_never_holds_all_logits(target: Target, name: str) -> None:
    trainer = _trainer(target, name)
    trainer.objective.rows = CHUNK
    assert CHUNK < NUM_REQUESTS * 40 * DRAFT_LENGTH // 2
    with NoBigTensor(CHUNK):
        trainer.step(0, measure=True)
        trainer.expected_accepted_length([_text()])


@pytest.mark.parametrize("part", ["step", "expected_accepted_length"])
def test_training_on_all_logits_at_once_is_caught(target: Target, part: str) -> None:
    trainer = _trainer(target, "dspark")
    trainer.objective.rows = 10**9
    with pytest.raises(BigTensorError), NoBigTensor(CHUNK):
        trainer.step(0, measure=True) if part == "step" else trainer.expected_accepted_length([_text()])


def _decode(target: Target, name: str) -> None:
    parts = build(target.info, name, DRAFT_LENGTH, torch.float32)
    engine = Engine(target, parts, max_batch=NUM_REQUESTS, max_positions=LENGTH + 8)
    params = [SamplingParams(seed=0, max_tokens=6), SamplingParams(seed=1, max_tokens=6, top_k=5, top_p=0.9)]
    with NoBigTensor(NUM_REQUESTS * (1 + DRAFT_LENGTH)):
        engine.run(_text().tokens.tolist(), params)


@pytest.mark.parametrize("name", STRATEGIES)
def test_decoding_makes_logits_of_the_rows_it_verifies_alone(target: Target, name: str) -> None:
    _decode(target, name)


def test_logits_of_a_whole_prompt_are_caught(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Target.forward

    def wasteful(self: Target, *args: object) -> Features:
        features = forward(self, *args)
        self.logits(features.last_hidden)
        return features

    monkeypatch.setattr(Target, "forward", wasteful)
    with pytest.raises(BigTensorError):
        _decode(target, "dspark")
