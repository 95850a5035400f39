"""Checkpoints are whole or absent, the newest few are kept, and what is loaded is what was saved."""

from __future__ import annotations

import json

import pytest
import torch

from deepspec.errors import CheckpointError
from deepspec.runs import checkpoints, newest_checkpoint, read_state
from deepspec.strategy import Parts
from deepspec.target import make_target
from deepspec.train import checkpoint as checkpoint_module
from deepspec.train.assemble import assemble
from deepspec.train.checkpoint import read_optimizer, read_weights, remove_partial, write_checkpoint
from tests.tiny_models import make
from tests.tiny_runs import strategy

STATE = {"target": {"name": "tiny"}}


def make_parts(seed: int = 0, rank: int = 8) -> Parts:
    target = make_target(make("qwen3", torch.float32))
    chosen = strategy(head={"rank": rank}).replace(drafter={"mask_token_id": 96})
    return assemble(chosen, target, device=torch.device("cpu"), dtype=torch.float32, seed=seed)


def save(folder, step, parts, keep=2):
    moments = {"x/exp_avg": torch.arange(3.0), "x/step": torch.tensor(float(step))}
    weights = parts.modules().state_dict()
    return write_checkpoint(
        folder, step, parts=parts, weights=weights, optimizer=moments, state=STATE, keep=keep
    )


def test_saved_equals_loaded(tmp_path):
    one, other = make_parts(0), make_parts(1)
    path = save(tmp_path, 7, one)
    read_weights(path, other)
    for name, tensor in one.modules().state_dict().items():
        assert tensor.equal(other.modules().state_dict()[name]), name
    assert read_optimizer(path)["x/step"].shape == ()
    state = read_state(path)
    assert (state["format"], state["step"], state["target"]) == (1, 7, {"name": "tiny"})
    assert state["strategy"] == one.strategy.model_dump(mode="json")
    assert {"deepspec", "torch", "transformers", "python"} <= set(state["versions"])


def test_the_targets_weights_are_not_in_the_file(tmp_path):
    path = save(tmp_path, 1, make_parts())
    names = set(checkpoint_module.load_file(path / "draft.safetensors"))
    assert not any("lm_head" in name or "embed_tokens" in name for name in names)


def test_only_the_newest_are_kept(tmp_path):
    parts = make_parts()
    for step in (2, 9, 10, 100):
        save(tmp_path, step, parts)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000010", "step-000100"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000010",
        "step-000100",
    ]


@pytest.mark.parametrize("failing", ["save_file", "write_json"])
def test_a_write_that_fails_leaves_the_older_checkpoint_and_nothing_else(tmp_path, monkeypatch, failing):
    parts = make_parts()
    save(tmp_path, 1, parts)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, parts)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_a_write_cut_short_is_never_taken_for_a_checkpoint_and_is_cleared_away(tmp_path):
    save(tmp_path, 1, make_parts())
    cut = tmp_path / "checkpoints" / ".partial-step-000002"
    cut.mkdir()
    (cut / "draft.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "step-000001"
    remove_partial(tmp_path)
    assert not cut.exists()


def test_another_shape_is_named(tmp_path):
    path = save(tmp_path, 1, make_parts(rank=8))
    with pytest.raises(CheckpointError, match=r"markov_w1.*shape \[97, 8\] instead of \[97, 4\]"):
        read_weights(path, make_parts(rank=4))


def test_a_truncated_file_is_named(tmp_path):
    path = save(tmp_path, 1, make_parts())
    file = path / "draft.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"draft\.safetensors cannot be read"):
        read_weights(path, make_parts())


def test_a_newer_format_is_refused(tmp_path):
    path = save(tmp_path, 1, make_parts())
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2.*reads up to 1"):
        read_state(path)
