"""Any head trains with any objective, its confidence trained or not, and is read back to decode by."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from deepspec.config import TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError
from deepspec.plugins import create_plugin_manager
from deepspec.runs import load
from deepspec.target import load_target
from deepspec.train import train
from deepspec.train.trainer import make_objective
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


@pytest.mark.parametrize(
    ("confidence", "weight", "refused"), [("linear", 0, True), ("linear", 1, False), ("row_max", 0, False)]
)
def test_a_policy_that_reads_an_untrained_confidence_is_refused(target: Path, confidence, weight, refused):
    loaded = load_target(TargetConfig(name=str(target)))
    head = {"type": "markov", "confidence": confidence}
    objective = {"terms": {"ce": 1.0, "confidence": weight}}
    parts = strategy("dflash", head=head, objective=objective, policy="threshold").build(loaded.info)
    message = "'threshold' reads the linear confidence of head 'markov', which no .*head.confidence=row_max$"
    with pytest.raises(ConfigError, match=message) if refused else nullcontext():
        make_objective(parts, loaded, create_plugin_manager())
