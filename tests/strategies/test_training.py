"""Every strategy with weights learns, and any head works on any drafter that has hidden states."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepspec.config import RunConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.plugins import create_plugin_manager
from deepspec.strategy import Strategy
from deepspec.target import Target
from deepspec.train import train
from deepspec.train.trainer import Trainer, make_objective
from deepspec.types import StepRecord, TokenBatch
from tests.exact_statistics.compositions import HEADS, build
from tests.tiny_models import VOCAB, masked_target
from tests.tiny_runs import config, save_target, save_text

CPU = torch.device("cpu")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("eagle3", {}),
    ("eagle3", {"num_layers": 2}),
    ("mtp", {}),
    ("mtp", {"modules": "each"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_twenty_steps_lengthen_what_is_accepted(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder, text = save_target(tmp_path / "target"), save_text(tmp_path / "text.jsonl")
    # The target's own distribution is what there is to learn: the tiny target did not write the text.
    chosen = Strategy.named(name).replace(
        draft_length=3, drafter=options, objective={"terms": {"soft_ce": 1.0}}
    )
    settings = config(folder, text, chosen=chosen, train={"num_steps": 20, "log_every": 5})
    records: list[StepRecord] = []
    train(settings.strategy, config=settings, out=tmp_path / "run", observers=[records.append])
    first, last = records[0], records[-1]
    assert last.expected_accepted_length > 1.2 * first.expected_accepted_length
    assert last.loss < first.loss


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


def _text() -> TokenBatch:
    tokens = torch.randint(0, VOCAB - 1, (2, 32), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(32).expand_as(tokens)
    return TokenBatch(tokens, torch.zeros_like(tokens), positions, torch.ones_like(tokens, dtype=torch.bool))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("name", "options"), [*VARIANTS, ("dflash", {}), ("eagle3", {"draft_vocab_size": 20})]
)
def test_any_head_trains_and_decodes_on_any_drafter(
    target: Target, name: str, options: dict[str, Any], head: str
) -> None:
    spec = {"type": head, "confidence": "row_max" if head == "none" else "linear"}
    parts = build(target.info, name, 3, torch.float64, drafter=options, head=spec)
    settings = RunConfig.model_validate(
        {"strategy": parts.strategy, "train": {"anchors_per_sequence": 4, "num_steps": 3}}
    )
    trainer = Trainer(
        parts,
        target,
        objective=make_objective(parts, target, create_plugin_manager()),
        sampler=SimpleNamespace(batch=lambda number: _text()),
        config=settings,
        device=CPU,
    )
    before = {key: weight.clone() for key, weight in parts.modules().named_parameters()}
    for number in range(2):
        result = trainer.step(number, measure=True)
    assert 0 < result.gradient_norm < float("inf")
    still = [key for key, weight in parts.modules().named_parameters() if weight.equal(before[key])]
    confidence_only = [key for key in still if "confidence" not in key]
    assert confidence_only == [], "every weight is trained, but those of a confidence without its term"
    engine = Engine(target, parts, max_batch=2)
    done = engine.run([[1, 2, 3], [4, 5]], SamplingParams(max_tokens=5, ignore_stop=True))
    assert [len(request.tokens) for request in done] == [5, 5]
