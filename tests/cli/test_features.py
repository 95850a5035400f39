"""``deepspec features`` and training on what it stored, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Ran, run
from tests.tiny_runs import EVAL_KEYS, save_prompts, save_target, save_text

SETTINGS = {
    "drafter.num_layers": 1,
    "drafter.num_target_layers": 2,
    "head.rank": 8,
    "data.sequence_length": 64,
    "data.held_out_fraction": 0.2,
    "train.anchors_per_sequence": 3,
    "eval.max_tokens": 8,
    "eval.num_prompts": 2,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What all commands are told: strategy, target and text."""
    folder = tmp_path_factory.mktemp("features")
    target, text = save_target(folder / "target"), save_text(folder / "text.jsonl")
    prompts = save_prompts(folder / "prompts.jsonl", ["the cat", "the mat"])
    words = ["--strategy", "dspark", "--target", str(target), "--data", str(text), "--device", "cpu"]
    for key, value in {**SETTINGS, "eval.tasks": f"mine={prompts}"}.items():
        words += ["--set", f"{key}={value}"]
    return words


def stored(shared: list[str], folder: Path, *words: str) -> Ran:
    return run("features", *shared, "--folder", folder, *words)


def test_a_dry_run_says_the_size_and_writes_nothing(shared: list[str], tmp_path: Path) -> None:
    ran = stored(shared, tmp_path / "cache", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert "layers 1 and the last, at 8 bits: " in ran.out
    assert "1 of 1 shards to write" in ran.out
    found = stored(shared, tmp_path / "cache", "--dry-run", "--json").json
    assert (found["schema"], found["bits"], found["num_missing"]) == (1, 8, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_was_stored_is_trained_on_and_measured_with_the_whole_target(
    shared: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "a cache"
    ran = stored(shared, cache)
    assert ran.code == 0, ran.err
    assert f"features.folder='{cache}'" in ran.out
    assert "shard 0 is written" in ran.err
    assert stored(shared, cache, "--json", "-q").json["num_written"] == 0
    words = ["--set", "features.source=cached", "--set", f"features.folder={cache}"]
    trained = run("train", *shared, *words, "--steps", "2", "--out", tmp_path / "run", "--json")
    assert trained.code == 0, trained.err
    assert trained.json.keys() >= EVAL_KEYS
    assert trained.json["step"] == 2


def test_parts_say_what_is_left_to_others(shared: list[str], tmp_path: Path) -> None:
    ran = stored(shared, tmp_path / "cache", "--part", "2/2", "-q")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "1 of 1 shards are left for other parts\n"
