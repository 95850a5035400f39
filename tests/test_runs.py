"""Run folders: loading a drafter with the target it was trained for, and no other; listing runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deepspec.errors import CheckpointError, TargetError
from deepspec.runs import checkpoints, list_runs, load, newest_checkpoint
from deepspec.train import train
from tests.tiny_runs import config, save_target, save_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, and two runs for it."""
    root = tmp_path_factory.mktemp("trained")
    settings = config(
        save_target(root / "target"),
        save_text(root / "text.jsonl"),
        train={"num_steps": 3, "checkpoint_every": 2},
    )
    train(settings.strategy, config=settings, out=root / "runs" / "one")
    return root


def test_loading_takes_the_newest_checkpoint_and_its_target(trained):
    run = load(trained / "runs" / "one", device="cpu")
    assert run.step == 3
    assert run.target.name == str(trained / "target")
    assert run.parts.strategy == run.config.strategy
    assert not run.parts.drafter.training


def test_a_checkpoint_published_without_optimiser_loads(trained, tmp_path):
    folder = shutil.copytree(trained / "runs" / "one", tmp_path / "one")
    for checkpoint in checkpoints(folder):
        (checkpoint / "optimizer.safetensors").unlink()
    assert load(folder, device="cpu").step == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "fingerprint"),
        ({"hidden_size": 32}, "hidden_size 32 instead of 48"),
        ({"tie_word_embeddings": True}, "fingerprint"),
    ],
)
def test_another_target_under_the_same_name_is_refused(trained, tmp_path, changes, words):
    root = shutil.copytree(trained, tmp_path / "copy")
    folder = root / "runs" / "one"
    settings = json.loads((folder / "config.json").read_text())
    settings["target"]["name"] = str(save_target(tmp_path / "other", **changes))
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=words):
        load(folder, device="cpu")


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Snapshots of ``Owner/Tiny`` in a cache of the hub; ``run`` was trained before main went on to NEW."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "models--Owner--Tiny"
    main = cached / "refs" / "main"
    main.parent.mkdir(parents=True)
    save_target(cached / "snapshots" / OLD)
    main.write_text(OLD)
    settings = config(
        Path("Owner/Tiny"),
        save_text(tmp_path / "text.jsonl"),
        train={"num_steps": 3, "checkpoint_every": 2},
    )
    train(settings.strategy, config=settings, out=tmp_path / "run")
    save_target(cached / "snapshots" / NEW, seed=5)
    main.write_text(NEW)
    return cached / "snapshots"


def test_a_target_of_the_hub_is_loaded_and_resumed_at_the_commit_of_the_run(hub, tmp_path):
    run = load(tmp_path / "run", device="cpu")
    assert run.target.revision == OLD
    shutil.rmtree(newest_checkpoint(tmp_path / "run"))
    resumed = train(run.config.strategy, config=run.config, out=tmp_path / "run", resume=True)
    assert (resumed.target.revision, resumed.target.fingerprint) == (OLD, run.target.fingerprint)


def test_other_weights_at_that_commit_are_refused_and_so_is_a_commit_that_is_gone(hub, tmp_path):
    save_target(hub / OLD, seed=5)
    with pytest.raises(
        CheckpointError, match=f"trained for target 'Owner/Tiny' at commit {OLD}.*fingerprint"
    ):
        load(tmp_path / "run", device="cpu")
    shutil.rmtree(hub / OLD)
    with pytest.raises(TargetError, match=f"'Owner/Tiny' at revision '{OLD}' is not in the local cache"):
        load(tmp_path / "run", device="cpu")


def test_a_local_folder_of_that_name_is_checked_as_it_is(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hub / OLD, tmp_path / "Owner" / "Tiny")
    assert load(tmp_path / "run", device="cpu").target.revision is None


def test_a_newer_format_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained / "runs" / "one", tmp_path / "one")
    path = newest_checkpoint(folder) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    with pytest.raises(CheckpointError, match="format 9"):
        load(folder, device="cpu")


def test_what_is_no_run_is_refused_with_a_hint(tmp_path):
    with pytest.raises(CheckpointError, match="deepspec runs"):
        load(tmp_path)


def test_a_run_without_a_checkpoint_says_how_to_go_on(trained, tmp_path):
    folder = shutil.copytree(trained / "runs" / "one", tmp_path / "one")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match=f"--resume --out {folder}"):
        load(folder, device="cpu")


def test_runs_are_listed_by_name_with_step_and_accepted_length(trained, tmp_path, caplog):
    root = shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copytree(root / "one", root / "two")
    (root / "two" / "eval.json").write_text(
        json.dumps({"accepted_length": {"mean": 2.5, "ci95": [2.4, 2.6]}})
    )
    (root / "damaged").mkdir()
    (root / "damaged" / "config.json").write_text("{")
    (root / "empty").mkdir()
    shutil.copytree(trained / "target", root / "model")
    first, second = list_runs(root)
    assert (first.name, first.strategy, first.step, first.tau) == ("one", "dspark", 3, None)
    assert (second.name, second.tau, second.path) == ("two", 2.5, root / "two")
    assert "damaged" in caplog.text
    assert "model" not in caplog.text


def test_no_runs_folder_is_an_empty_list(tmp_path):
    assert list_runs(tmp_path / "runs") == []
