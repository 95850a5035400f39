"""What a run survives: being killed anywhere, damaged checkpoints, folders that cannot be written."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import CheckpointError, ResourceError
from deepspec.runs import Run, checkpoint_path, checkpoints
from deepspec.train import train
from tests.tiny_runs import config

ROOT = Path(__file__).parents[2]
NUM_KILLS = 30 if os.environ.get("DEEPSPEC_THOROUGH") == "1" else 4


def go(target: Path, text: Path, out: Path, *, resume: bool = False, **train_settings: Any) -> Run:
    chosen = config(target, text, train={"checkpoint_every": 2, **train_settings})
    return train(chosen.strategy, config=chosen, out=out, resume=resume)


def weights(out: Path) -> bytes:
    return (checkpoint_path(out, 6) / "draft.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(target: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    go(target, text, out)
    return out


@pytest.mark.thorough
def test_killed_anywhere_a_run_goes_on_and_ends_as_if_it_had_not_been(
    target: Path, text: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.train.kills", str(target), str(text), str(tmp_path)]
    ran = subprocess.run(
        [*command, "--kills", str(NUM_KILLS)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    assert sum(found["killed"].values()) == NUM_KILLS
    assert found["problems"] == []
    assert found["num_runs"] >= 1


def damage(path: Path, how: str) -> None:
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "bit":
        content = bytearray(path.read_bytes())
        content[-3] ^= 4
        path.write_bytes(content)
    else:
        path.write_text("{")


@pytest.mark.parametrize(
    ("name", "how"),
    [("draft.safetensors", "cut"), ("optimizer.safetensors", "bit"), ("state.json", "text")],
)
def test_of_a_damaged_checkpoint_the_previous_one_is_used_and_that_is_said(
    target: Path,
    text: Path,
    tmp_path: Path,
    whole: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    how: str,
) -> None:
    caplog.set_level(logging.INFO)
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    damage(checkpoint_path(out, 6) / name, how)
    go(target, text, out, resume=True)
    for words in (
        f"step-000006{'' if name == 'state.json' else f'/{name}'} is damaged",
        "the previous checkpoint, step-000004, is used instead",
        "going on from step 4 of 6",
        "step-000004 is the last whole one; steps 5 to 6, done after it, are done again",
        "put aside as damaged-step-000006",
    ):
        assert words in caplog.text
    assert weights(out) == weights(whole)
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (out, whole)
    ]
    assert [(one["kind"], one["step"], one.get("loss")) for one in logs[0]] == [
        (one["kind"], one["step"], one.get("loss")) for one in logs[1]
    ]


def test_where_all_checkpoints_are_damaged_a_run_starts_again_and_says_so(
    target: Path, text: Path, tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in checkpoints(out):
        damage(path / "draft.safetensors", "bit")
    go(target, text, out, resume=True)
    assert "there is no other checkpoint" in caplog.text
    assert "going on from the start" in caplog.text
    assert weights(out) == weights(whole)


def test_a_folder_that_cannot_be_written_is_named_before_the_first_step(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match="run cannot be made: .*Read-only.*another --out"):
        go(target, text, tmp_path / "run")


def test_a_folder_that_becomes_read_only_ends_the_run_with_the_last_good_checkpoint(
    target: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    rename = Path.rename

    def refuse(self: Path, other: Path) -> Path:
        if other.name == "step-000004":
            raise OSError(30, "Read-only file system", str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ResourceError, match="step-000004 cannot be written: .*Read-only.*step-000002"):
        go(target, text, out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]


def test_a_start_that_was_killed_before_its_configuration_was_there_starts_anew(
    target: Path, text: Path, tmp_path: Path, whole: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    out = tmp_path / "run"
    out.mkdir()
    (out / f".config.json.{gone.pid}").write_text("{")
    go(target, text, out)
    assert weights(out) == weights(whole)
    assert not list(out.glob(".*"))
