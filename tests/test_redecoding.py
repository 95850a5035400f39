"""Trained parts that decode in another way: what is made anew, what stays, and what no training gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.errors import ConfigError
from deepspec.evaluate import calibrate
from deepspec.plugins import create_plugin_manager
from deepspec.redecoding import redecoded
from deepspec.runs import Run, list_runs, load
from deepspec.strategy import Parts
from deepspec.train import train
from deepspec.train.confidence import is_untrained
from deepspec.train.trainer import make_objective
from tests.command_line import run as deepspec
from tests.tiny_runs import config, save_prompts, save_target, save_text, strategy, untrained_run

NO_TERM = {"terms": {"ce": 1.0}}


@pytest.fixture(scope="module")
def run() -> Run:
    return untrained_run()


def with_objective(run: Run, objective: dict[str, Any]) -> Parts:
    """The run's parts, as if they had been trained by it."""
    return redecoded(run.parts, objective=objective)


def test_nothing_but_what_is_asked_for_is_made_anew(run: Run) -> None:
    policy = {"type": "threshold", "threshold": 0.2}
    made = redecoded(run.parts, policy=policy, calibrator="online")
    assert (made.policy.name, made.calibrator.name) == ("threshold", "online")
    assert made.strategy == run.parts.strategy.replace(policy=policy, calibrator="online")
    assert made.drafter is run.parts.drafter
    assert made.head is run.parts.head
    assert made.verifier is run.parts.verifier
    assert redecoded(run.parts, head={"confidence": "linear"}).head is run.parts.head
    assert redecoded(run.parts) is run.parts


def test_a_head_of_another_confidence_has_the_trained_weights(run: Run) -> None:
    old = run.parts.head
    head = redecoded(run.parts, head={"confidence": "row_max"}).head
    assert head.confidence == "row_max"
    assert set(old.state_dict()) - set(head.state_dict()) == {
        "confidence_head.weight",
        "confidence_head.bias",
    }
    assert all(torch.equal(weight, old.state_dict()[name]) for name, weight in head.state_dict().items())
    assert head.training == old.training
    without = redecoded(run.parts, head={"confidence": "none"})
    with pytest.raises(ConfigError, match=r"^head.confidence=linear needs head.confidence_head.bias, which"):
        redecoded(without, head={"confidence": "linear"})
    with pytest.raises(
        ConfigError, match="policy 'threshold' reads confidences and head 'markov' gives none"
    ):
        redecoded(without, policy="threshold")


def test_a_policy_or_calibrator_goes_by_no_confidence_that_nothing_trained(run: Run) -> None:
    parts = with_objective(run, NO_TERM)
    words = "reads the linear confidence of head 'markov', which no objective term trains; train with"
    with pytest.raises(ConfigError, match=f"^policy 'threshold' {words}"):
        redecoded(parts, policy="threshold")
    with pytest.raises(ConfigError, match=f"^a calibrator {words}"):
        calibrate(Run(run.path, run.config, run.target, parts, step=0))
    redecoded(parts, policy="threshold", head={"confidence": "row_max"})
    redecoded(run.parts, policy="threshold")


def test_a_term_that_is_not_installed_may_have_trained_it(run: Run) -> None:
    elsewhere = with_objective(run, {"terms": {"ce": 1.0, "foreign": 0.5}})
    assert not is_untrained(elsewhere, create_plugin_manager())
    off = with_objective(run, {"terms": {"ce": 1.0, "foreign": 0.0, "confidence": 0.0}})
    assert is_untrained(off, create_plugin_manager())


def test_training_says_that_it_leaves_a_confidence_untrained(run: Run, caplog) -> None:
    make_objective(run.parts, run.target, create_plugin_manager())
    assert not caplog.records
    make_objective(with_objective(run, NO_TERM), run.target, create_plugin_manager())
    (record,) = caplog.records
    assert "no objective term trains the linear confidence of head 'markov'" in record.getMessage()


def test_an_evaluation_by_the_runs_own_settings_is_kept_for_the_list_of_runs(tmp_path: Path) -> None:
    target, text = save_target(tmp_path / "target"), save_text(tmp_path / "text.jsonl")
    task = f"mine={save_prompts(tmp_path / 'mine.jsonl', ['abc', 'hello'])}"
    own = {"tasks": [task], "max_tokens": 8}
    settings = config(target, text, chosen=strategy(), train={"num_steps": 1}, eval=own)
    folder = tmp_path / "runs" / "one"
    train(settings.strategy, config=settings, out=folder)

    def listed() -> float | None:
        return list_runs(folder.parent)[0].tau

    assert deepspec("eval", folder, "--temperature", "0", "-q").code == 0
    assert deepspec("eval", folder, "--set", "verifier=delta", "-q").code == 0
    assert listed() is None
    ran = deepspec("eval", folder, "--json", "-q")
    assert listed() == ran.json["accepted_length"]["mean"]
    assert json.loads((folder / "eval.json").read_text()) == ran.json
    assert load(folder).step == 1
    (folder / "eval.json").unlink()
    (folder / "eval.json").mkdir()  # stands for a folder that cannot be written to
    ran = deepspec("eval", folder)
    assert ran.code == 0
    assert "not kept for `deepspec runs`" in ran.err
