"""One seed is one result: two training runs on CPU leave the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepspec.runs import checkpoint_path
from deepspec.train import train
from tests.tiny_runs import config, save_target, save_text


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_trainings_with_one_seed_leave_equal_bytes(optimizer: str, tmp_path: Path) -> None:
    target, text = save_target(tmp_path / "target"), save_text(tmp_path / "text.jsonl")
    left = []
    for name, seed, elsewhere in (("a", 3, 0), ("b", 3, 1), ("c", 4, 0)):
        torch.manual_seed(elsewhere)  # what others drew before does not matter
        settings = config(target, text, seed=seed, train={"optimizer": optimizer})
        train(settings.strategy, config=settings, out=tmp_path / name)
        checkpoint = checkpoint_path(tmp_path / name, 6)
        left.append([(checkpoint / f"{part}.safetensors").read_bytes() for part in ("draft", "optimizer")])
    assert left[0] == left[1]
    assert left[0][0] != left[2][0]
