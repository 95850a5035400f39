"""What a run writes about itself: JSONL, TensorBoard's events, a tracker, how it was started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deepspec.config import RunConfig, TrainConfig
from deepspec.environment import commit
from deepspec.errors import ConfigError
from deepspec.strategy import Strategy
from deepspec.train.logs import RunLog, check_tracker

ADVICE = "make room"
CPU = torch.device("cpu")
STEP = {"step": 10, "num_steps": 40, "loss": 2.5, "terms": {"ce": 2.0}, "note": "none", "decoded": None}


def config(**train: Any) -> RunConfig:
    return RunConfig(strategy=Strategy.named("dspark"), train=TrainConfig(**train))


def opened(folder: Path, first_step: int = 0, **train: Any) -> RunLog:
    return RunLog(folder, config(**train), first_step=first_step, advice=lambda: ADVICE)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_line_is_json_and_its_numbers_are_events(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.write("step", STEP)
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"kind": "step", **STEP}
    assert scalars(tmp_path) == {"step/loss": [(10, 2.5)], "step/terms/ce": [(10, 2.0)]}


def test_events_past_the_step_that_a_run_goes_on_from_are_dropped(tmp_path: Path) -> None:
    for first_step, value in ((0, 1.0), (10, 2.0)):
        log = opened(tmp_path, first_step)
        for step in (10, 20):
            if step > first_step:
                log.write("step", {"step": step, "loss": value})
        log.close()
    assert scalars(tmp_path) == {"step/loss": [(10, 1.0), (20, 2.0)]}


def test_each_start_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deepspec", "train"])
    for first_step in (0, 10):
        log = opened(tmp_path, first_step)
        log.started(first_step, CPU, num_processes=1)
        log.close()
    first, second = map(json.loads, (tmp_path / "starts.jsonl").read_text().splitlines())
    assert (first["first_step"], second["first_step"]) == (0, 10)
    assert first["command"] == ["deepspec", "train"]
    assert first["commit"] == commit()
    assert first["versions"]["torch"] == torch.__version__
    assert first["device"]


def test_a_tracker_is_told_the_configuration_and_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    calls = {
        "init": lambda **given: told.append((given["project"], given["name"], given["config"]["seed"])),
        "log": lambda values, step: told.append((values, step)),
        "finish": lambda: told.append(()),
    }
    fake = ModuleType("trackio")
    vars(fake).update(calls)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log = opened(tmp_path, tracker="trackio")
    log.write("step", STEP)
    log.close()
    numbers = {"step/loss": 2.5, "step/terms/ce": 2.0}
    assert told == [("deepspec", tmp_path.name, 0), (numbers, 10), ()]


def test_a_tracker_that_is_not_installed_is_bad_input() -> None:
    check_tracker(None)
    with pytest.raises(ConfigError, match="train.tracker is 'wandb', which is not installed; run `pip"):
        check_tracker("wandb")


def test_without_tensorboard_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = opened(tmp_path)
    log.write("step", STEP)
    log.close()
    assert (tmp_path / "log.jsonl").exists()
    assert "no TensorBoard events are written" in caplog.text
