"""Any head trains with any objective, its confidence trained or not, and is read back to decode by."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepspec.engine import Engine, SamplingParams
from deepspec.runs import load
from deepspec.train import train
from deepspec.types import StepRecord
from tests.tiny_runs import config, strategy

PARAMS = SamplingParams(max_tokens=12, seed=3, ignore_stop=True)
LOSSES = {"soft_ce": 0.5, "l1": 0.5, "lk": 1.0, "lk_hybrid": 1.0}
TRAINED = {"terms": {**LOSSES, "confidence": 1.0}, "position_weights": "survival"}
CASES = [
    ({"type": "markov", "confidence": "row_max"}, {"terms": LOSSES}),
    ({"type": "gated"}, TRAINED),
    ({"type": "rnn"}, TRAINED),
    ({"type": "rnn", "confidence": "row_max"}, {"terms": {"ce": 1.0}, "position_weights": "survival"}),
]


@pytest.mark.parametrize(("head", "objective"), CASES)
def test_a_head_and_an_objective_train_and_decode(target: Path, text: Path, tmp_path: Path, head, objective):
    policy = {"type": "threshold", "threshold": 0.2}
    chosen = strategy("dflash", head=head, objective=objective, policy=policy)
    settings = config(target, text, chosen=chosen, train={"num_steps": 10, "checkpoint_every": 10})
    records: list[StepRecord] = []
    out = tmp_path / "run"
    trained = train(settings.strategy, config=settings, out=out, observers=[records.append])
    assert set(records[0].terms) == set(objective["terms"])
    assert records[-1].loss < records[0].loss
    assert trained.parts.head.output_weight.any()
    again = load(out)
    assert again.config.strategy.objective == chosen.objective
    outputs = [
        Engine(run.target, run.parts, max_batch=1).run([[5, 6]], PARAMS)[0].tokens for run in (trained, again)
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == PARAMS.max_tokens
