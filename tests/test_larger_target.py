"""The larger target: made in pieces it is the one made at once, and drafters train on it and on its text."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import larger_target
import pytest

import deepspec
from deepspec.data import build_continuations
from deepspec.data.local_text import SourceFile, stdlib_files
from deepspec.engine import SamplingParams
from deepspec.target import demo
from tests.tiny_runs import config

#: Both runs have these settings; 260 of the vocabulary are bytes and special tokens.
TINY = {
    "vocab_size": 300,
    "num_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "context": 256,
    "sequences_per_step": 2,
    "num_steps": 4,
    "warmup_steps": 1,
    "learning_rate": 0.1,
    "stdlib_repeats": 1,
    "package_byte_limit": 20_000,
}


def run(folder: Path, *arguments: str, **changes: object) -> int:
    settings = [f"--set={key}={value}" for key, value in {**TINY, **changes}.items()]
    return larger_target.main([str(folder), "--continuations", "4", *settings, *arguments])


@pytest.fixture
def _little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few files instead of the whole library, short blocks and intervals, and likely tokens only.

    What a model that was hardly trained writes of bytes at temperature 1 is no text.
    """
    library = {True: stdlib_files(held_out=True)[:1], False: stdlib_files(held_out=False)[:4]}
    for module in (larger_target, demo):
        monkeypatch.setattr(module, "stdlib_files", lambda held_out: library[held_out])
    monkeypatch.setattr(larger_target, "installed_packages", lambda: ["mpmath"])
    monkeypatch.setattr(build_continuations, "HELD_OUT_PACKAGES", ("click",))
    monkeypatch.setattr(larger_target, "BLOCK", 2)
    monkeypatch.setattr(larger_target, "LOG_EVERY", 3)
    monkeypatch.setattr(larger_target, "SamplingParams", partial(SamplingParams, temperature=0.5))


def content(folder: Path) -> dict[str, bytes]:
    """Every file but those that hold times."""
    timed = ("build-log.json", "training.safetensors")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in timed)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def curve(folder: Path) -> list[dict[str, float]]:
    points = json.loads((folder / "larger-target" / "build-log.json").read_text())["curve"]
    return [{key: value for key, value in point.items() if key != "seconds"} for point in points]


@pytest.mark.usefixtures("_little_text")
def test_in_pieces_it_is_made_as_at_once_and_drafters_train_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    run(whole)
    assert capsys.readouterr().out.endswith("complete\n")
    runs = 0
    while not capsys.readouterr().out.endswith("complete\n"):
        run(pieces, "--minutes", "0.0001")
        runs += 1
    assert runs == TINY["num_steps"] + 2  # a step each, then a block each
    assert content(pieces) == content(whole)
    assert [point["step"] for point in curve(whole)] == [3, 4]
    assert curve(pieces) == curve(whole)

    (whole / "tokens.safetensors").unlink()
    (whole / "training.safetensors").unlink()
    run(whole, "--continuations", "5")
    assert (whole / "continuations" / "0002.jsonl").exists()
    settings = config(whole / "larger-target", whole / "continuations", train={"num_steps": 2})
    trained = deepspec.train(settings.strategy, config=settings, out=tmp_path / "run")
    assert trained.step == 2


@pytest.mark.usefixtures("_little_text")
def test_a_folder_of_another_recipe_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path, "--minutes", "0.0001")
    with pytest.raises(SystemExit, match="was begun with num_layers=4; go on with that"):
        run(tmp_path, num_layers=3)
    with pytest.raises(SystemExit, match="--set num_layers=x: allowed are vocab_size=int"):
        run(tmp_path, num_layers="x")


def test_text_that_is_held_out_or_there_twice_is_not_trained_on(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.py", "b.py", "c.py"))
    first.write_text("a = 1\n")
    shutil.copy(first, copy)
    other.write_text("b = 2\n")
    files = [SourceFile(path.name, path) for path in (first, copy, other)]
    assert larger_target.without_copies([*files, *files], []) == [files[0], files[2]] * 2
    assert larger_target.without_copies(files, files[1:2]) == [files[2]]
