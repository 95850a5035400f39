"""``train --dry-run``: sizes that a run then has, after two steps, with nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepspec.errors import CheckpointError, ResourceError
from deepspec.runs import checkpoint_path
from deepspec.train import train
from deepspec.train.estimate import estimate
from deepspec.train.trainer import Trainer
from tests.command_line import run
from tests.tiny_runs import config


def test_sizes_are_those_of_the_run(target: Path, text: Path, tmp_path: Path) -> None:
    settings = config(target, text, train={"num_steps": 3}, out=str(tmp_path / "run"))
    found = estimate(settings)
    assert list(tmp_path.iterdir()) == []
    made = train(settings.strategy, config=settings)
    modules, model = made.parts.modules(), made.target.model
    assert found.drafter_parameters == sum(weight.numel() for weight in modules.parameters())
    assert 0 < found.trained_parameters <= found.drafter_parameters
    assert found.target_parameters == sum(weight.numel() for weight in model.parameters())
    checkpoint = sum(path.stat().st_size for path in checkpoint_path(tmp_path / "run", 3).iterdir())
    assert found.disk_bytes == pytest.approx(4 * checkpoint, rel=0.1)  # without headers and the state's JSON
    assert found.epochs == 3 * 3 / found.num_rows
    assert found.seconds == 3 * found.step_seconds > 0
    assert found.memory_bytes > 4 * (found.drafter_parameters + found.target_parameters)


def test_what_training_refuses_is_refused(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        estimate(config(target, text, out=str(tmp_path / "full")))

    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "step", exhausted)
    with pytest.raises(ResourceError, match=r"in a step; lower .*sequences_per_step \(now 3\)"):
        estimate(config(target, text))


def test_the_command_shows_them(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--strategy", "dspark", "--target", target, "--data", text, "--device", "cpu"]
    words += ["--set", "data.sequence_length=64", "--set", "data.held_out_fraction=0.2", "--dry-run"]
    words += ["--set", "drafter.num_target_layers=2"]
    ran = run(*words)
    assert ran.code == 0, ran.err
    for word in ("parameters", "tokens in", "at the most", "of checkpoints", "for 450 steps"):
        assert word in ran.out
    assert run(*words, "--json").json["schema"] == 1
    assert list(tmp_path.iterdir()) == []
