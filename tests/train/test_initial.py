"""``--init-from``: another run's weights, a fresh optimiser, and one line for what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepspec.cli.train import _settings
from deepspec.errors import CheckpointError, ConfigError
from deepspec.layers import resolve
from deepspec.plugins import create_plugin_manager
from deepspec.runs import checkpoint_path, read_config
from deepspec.strategy import Strategy
from deepspec.train import train
from deepspec.train.initial import settings_of
from deepspec.train.prepare import Prepared, prepare
from tests.tiny_runs import config, save_target, save_text, strategy


def begin(settings, out: Path) -> Prepared:
    return prepare(settings, out, resume=False, check_tasks=False, manager=create_plugin_manager())


def weights(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_path(run, step) / "draft.safetensors")


def files(run: Path) -> dict[str, bytes]:
    folder = checkpoint_path(run, 6)
    return {name: (folder / name).read_bytes() for name in ("draft.safetensors", "optimizer.safetensors")}


@pytest.fixture(scope="module")
def base(target, text, tmp_path_factory) -> Path:
    """A finished run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "base"
    settings = config(target, text)
    return train(settings.strategy, config=settings, out=out).path


@pytest.fixture(scope="module")
def domain(tmp_path_factory) -> Path:
    """Other text than that of the base."""
    return save_text(tmp_path_factory.mktemp("domain") / "text.jsonl", num_documents=20)


def test_weights_are_the_runs_and_the_optimiser_is_fresh(target, base, domain, tmp_path):
    settings = config(target, domain, train={"init_from": str(base)}, seed=5)
    prepared = begin(settings, tmp_path / "new")
    found = prepared.trainer.parts.modules().state_dict()
    expected = weights(base)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert prepared.init_from == {"run": str(base), "step": 6, "strategy": "dspark"}
    plain = begin(config(target, domain, seed=5), tmp_path / "plain")
    fresh = plain.trainer.optimizer.state_tensors()
    moments = prepared.trainer.optimizer.state_tensors()
    assert moments.keys() == fresh.keys()
    assert all(torch.equal(moments[name], fresh[name]) for name in fresh)


def test_it_is_recorded_and_resumes_bit_for_bit_also_without_the_run_it_began_from(
    target, base, domain, tmp_path
):
    settings = config(target, domain)
    kept = tmp_path / "kept"
    shutil.copytree(base, kept)

    def go(name: str, **options: object) -> Path:
        options = {"init_from": kept, "out": tmp_path / name, **options}
        return train(settings.strategy, config=settings, **options).path

    whole = go("whole")
    assert read_config(whole).train.init_from == str(kept)
    state = json.loads((checkpoint_path(whole, 6) / "state.json").read_text())
    assert state["init_from"] == {"run": str(kept), "step": 6, "strategy": "dspark"}
    for name, steps in (("half", (6,)), ("none", (3, 6))):
        shutil.copytree(whole, tmp_path / name)
        for step in steps:
            shutil.rmtree(checkpoint_path(tmp_path / name, step))
    assert files(go("none", resume=True)) == files(whole)  # from the start: the run is read again
    shutil.rmtree(kept)
    assert files(go("half", resume=True)) == files(whole)
    resumed = json.loads((checkpoint_path(tmp_path / "half", 6) / "state.json").read_text())
    assert resumed["init_from"] == state["init_from"]


def test_a_reduced_vocabulary_stays_that_of_the_run(target, text, tmp_path):
    drafter = {"num_layers": 1, "draft_vocab_size": 12}
    chosen = Strategy.named("eagle3").replace(draft_length=3, drafter=drafter)
    settings = config(target, text, chosen=chosen)
    first = train(chosen, config=settings, out=tmp_path / "first").path
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"{n} XYZQ WVUTS " * 9}) + "\n" for n in range(9)))
    adapted = config(target, other, chosen=chosen, train={"init_from": str(first)})
    prepared = begin(adapted, tmp_path / "second")
    ids = prepared.trainer.drafter.readout().target_ids
    [name] = [name for name in weights(first) if name.endswith("target_ids")]
    assert torch.equal(ids, weights(first)[name])
    assert prepared.vocabulary_coverage is not None
    assert prepared.vocabulary_coverage < 0.7


def test_a_drafter_for_another_target_is_refused(base, text, tmp_path):
    other = save_target(tmp_path / "target", seed=1)
    settings = config(other, text, train={"init_from": str(base)})
    with pytest.raises(ConfigError) as caught:
        begin(settings, tmp_path / "new")
    trained_for = read_config(base).target.name
    assert str(caught.value) == (
        f"--init-from {base}: its drafter is for target {trained_for!r}, and {str(other)!r} is another "
        f"model; give --target {trained_for}, or train without --init-from"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (strategy("dflash"), "this is 'dflash' (drafter dflash, head none)"),
        (strategy(head={"rank": 4}), "has shape"),
        (strategy(drafter={"num_layers": 2}), "is missing"),
    ],
)
def test_another_strategys_shapes_are_refused(target, base, text, tmp_path, chosen, said):
    settings = config(target, text, chosen=chosen, train={"init_from": str(base)})
    with pytest.raises(ConfigError) as caught:
        begin(settings, tmp_path / "new")
    line = str(caught.value)
    assert line.startswith(
        f"--init-from {base}: its weights are those of 'dspark' (drafter dflash, head markov)"
    )
    assert said in line
    assert line.endswith("on what the run holds, or train without --init-from")
    assert not (tmp_path / "new").exists()


def test_two_places_to_start_from_and_no_run_are_refused(target, text, base, tmp_path):
    both = config(target, text, train={"init_from": str(base), "init_from_target": True})
    with pytest.raises(ConfigError, match="both say what the drafter starts from; give one of the two"):
        begin(both, tmp_path / "new")
    with pytest.raises(CheckpointError, match="nowhere is no run folder"):
        begin(config(target, text, train={"init_from": "nowhere"}), tmp_path / "new")
    empty = tmp_path / "empty"
    shutil.copytree(base, empty)
    shutil.rmtree(empty / "checkpoints")
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        begin(config(target, text, train={"init_from": str(empty)}), tmp_path / "new")


def flags(**given: object) -> dict[str, object]:
    return {"out": None, "train.init_from": None, "target.name": None, **given}


def test_the_command_takes_strategy_and_target_of_the_run(base):
    found = _settings(None, None, flags(**{"train.init_from": str(base)}), [], resume=False)
    saved = read_config(base)
    assert found.strategy == saved.strategy
    assert (found.target.name, found.train.init_from) == (saved.target.name, str(base))
    assert found.train.num_steps != saved.train.num_steps  # the rest is not the run's


def test_what_else_is_named_wins_over_the_run(base, tmp_path):
    run = settings_of(str(base))
    assert resolve("dflash", run=run).config().strategy.name == "dflash"
    resolved = resolve(None, run=run, flags={"target.name": "other"})
    assert resolved.config().target.model_dump()["name"] == "other"
    file = tmp_path / "run.toml"
    file.write_text("strategy = 'dflash'\n[target]\nname = 'third'\n")
    named = resolve(None, run=run, file=file).config()
    assert (named.strategy.name, named.target.name) == ("dflash", "third")
    changed = resolve(None, run=run, sets=["head.rank=4", "target.dtype=bfloat16"])
    assert changed.config().strategy.head.model_dump()["rank"] == 4
    base_name = read_config(base).target.name
    assert ("target.name", base_name, "run") in changed.leaves()


def test_the_shipped_drafter_is_one_to_start_from():
    found = _settings(None, None, flags(**{"train.init_from": "demo"}), [], resume=False)
    assert (found.strategy.name, found.target.name) == ("dspark", "demo")
