"""``calibrate`` on a tiny random target: what it reports, stores and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deepspec
from deepspec.cli import main
from deepspec.config import EvalConfig
from deepspec.errors import ConfigError, DataError
from deepspec.evaluate import calibration
from deepspec.evaluate.calibration import calibrate
from deepspec.redecoding import redecoded
from deepspec.runs import Run, load, read_state
from tests import tiny_runs
from tests.tiny_runs import save_prompts, untrained_run

KEYS = {
    "schema",
    "calibrator",
    "verifier",
    "temperature",
    "num_rounds",
    "ece_before",
    "ece_after",
    "ece_floor",
    "auc_conditional",
    "auc_survival_before",
    "auc_survival_after",
    "temperatures",
}


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LEAST_ROUNDS", 20)


@pytest.fixture(scope="module")
def run() -> Run:
    return untrained_run()


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"mine={save_prompts(tmp_path / 'mine.jsonl', ['abc', 'hello', 'def f', 'x = 1'])}"


CONFIG = EvalConfig(max_tokens=60, batch=4)


def test_the_report_has_the_documented_keys_and_a_number_a_position(run: Run, task: str) -> None:
    report = calibrate(run, tasks=[task], config=CONFIG)
    found = report.to_json()
    assert set(found) >= KEYS
    assert (found["calibrator"], found["verifier"], found["schema"]) == ("sequential", "block", 1)
    assert all(len(found[key]) == 3 for key in KEYS if isinstance(found[key], list))
    assert all(0 < after < 0.5 for after in found["ece_after"])


def test_scaling_changes_no_order_of_a_position(run: Run, task: str) -> None:
    found = calibrate(run, tasks=[task], config=CONFIG).to_json()
    pairs = zip(found["auc_conditional_before"], found["auc_conditional"], strict=True)
    assert all(before == after or abs(before - after) < 1e-9 for before, after in pairs)


def test_a_trace_gives_the_same_as_decoding(run: Run, task: str, tmp_path: Path) -> None:
    file = tmp_path / "rounds.parquet"
    deepspec.evaluate(run, tasks=[task], config=CONFIG, trace=file)
    told, new = calibrate(run, trace=file), calibrate(run, tasks=[task], config=CONFIG)
    assert told.to_json() == new.to_json()


def test_what_cannot_be_calibrated_is_refused_in_a_line(run: Run, task: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chances are those of the token rule"):
        calibrate(run, tasks=[task], config=CONFIG, soft=True)
    with pytest.raises(ConfigError, match="'identity' has nothing to fit"):
        calibrate(run, calibrator="identity", tasks=[task], config=CONFIG)
    with pytest.raises(ConfigError, match="did you mean 'sequential'"):
        calibrate(run, calibrator="sequentiel", tasks=[task], config=CONFIG)
    with pytest.raises(DataError, match=r"calibration needs 20 in each: \d+ are missing"):
        calibrate(run, tasks=[task], config=EvalConfig(max_tokens=8))
    file = tmp_path / "rounds.parquet"
    deepspec.evaluate(run, tasks=[task], config=CONFIG, trace=file)
    other = untrained_run(hidden_size=32)
    with pytest.raises(DataError, match="was written with target"):
        calibrate(other, trace=file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    target = tiny_runs.save_target(folder / "target")
    config = tiny_runs.config(target, tiny_runs.save_text(folder / "text.jsonl"))
    deepspec.train(config.strategy, config=config, out=folder / "run")
    return folder / "run"


def test_a_stored_calibration_is_what_the_run_decodes_with(
    trained: Path, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task-file", task, "--max-tokens", "60", "--set", "head.confidence=row_max", "--json", "-q"]
    exported = tmp_path / "sts.json"
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(trained), *flags, "--sglang", str(exported)])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    loaded = load(trained)
    assert loaded.parts.calibrator.name == "sequential"
    assert loaded.parts.head.confidence == "row_max"
    stored = read_state(trained / "checkpoints" / "step-000006")["calibration"]
    assert stored["strategy"]["calibrator"]["temperatures"] == found["temperatures"]
    logits = torch.ones(1, 3)
    by_hand = (logits / torch.tensor(found["temperatures"])).sigmoid()
    assert torch.allclose(loaded.parts.calibrator.conditional(logits), by_hand)
    written = json.loads(exported.read_text())
    assert set(written) == {"temperatures", "dataset", "num_samples", "ece_before", "ece_after"}
    again = load(trained, changes={"calibrator": "identity"})
    assert again.parts.calibrator.name == "identity"


def test_only_what_decoding_needs_can_be_changed(trained: Path) -> None:
    policy = {"type": "threshold", "threshold": 0.4}
    changed = load(trained, changes={"policy": policy, "verifier": "delta"})
    assert (changed.parts.policy.name, changed.parts.verifier.name) == ("threshold", "delta")
    for wrong in ({"draft_length": 2}, {"head": {"rank": 4}}, {"head": "rnn"}):
        with pytest.raises(ConfigError, match="of a trained run cannot be changed"):
            load(trained, changes=wrong)


def test_the_calibrators_other_options_are_kept(run: Run, task: str) -> None:
    own = replace(run, parts=redecoded(run.parts, calibrator={"type": "online", "num_classes": 3}))
    report = calibrate(own, tasks=[task], config=CONFIG)
    part = report.stored()["strategy"]["calibrator"]
    assert (part["type"], part["num_classes"], len(part["temperatures"])) == ("online", 3, 3)
