"""Wrong pairings and checkpoints that cannot be used are refused in one line, before any decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.errors import CheckpointError, ConfigError, DeepSpecError, TargetError
from deepspec.formats.opened import open_draft
from deepspec.target import Target, make_target
from tests.formats import foreign as f
from tests.tiny_models import make

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def target() -> Target:
    return f.tiny_target()


def changed(folder: Path, change: Change) -> Path:
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    return f.save(folder, config, tensors)


def refusal(folder: Path, target: Target, kind: type[DeepSpecError] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        open_draft(str(folder), target=target)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("write", [f.deepspec_dspark, f.deepspec_eagle3])
def test_another_targets_drafter_of_the_same_sizes(write, target, tmp_path):
    other = make_target(make("qwen3", torch.float32, seed=1), name="other")
    line = refusal(write(tmp_path, target), other)
    assert "is another target's" in line
    assert "'other' has other values" in line


@pytest.mark.parametrize("write", [f.sglang_dflash, f.speculators_dflash, f.sglang_eagle3, f.deepspec_dspark])
def test_a_vocabulary_off_by_a_row(write, target, tmp_path):
    wider = make_target(make("qwen3", torch.float32, vocab_size=98), name="wider")
    assert "'wider' has vocabulary 98 instead of 97" in refusal(write(tmp_path, target), wider)


def test_another_depth_and_width(target, tmp_path):
    deeper = make_target(make("qwen3", torch.float32, num_hidden_layers=5, hidden_size=64), name="deeper")
    line = refusal(f.sglang_dflash(tmp_path, target), deeper)
    assert "'deeper' has hidden size 64 instead of 48, number of layers 5 instead of 4" in line


def one_more(key: str) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        place = config.get("dflash_config", config)
        place[key] = [i + 1 for i in place[key]]

    return change


@pytest.mark.parametrize("write", [f.deepspec_dspark, f.sglang_dflash, f.deepspec_eagle3])
def test_layer_ids_that_count_from_1_where_the_layout_counts_from_0(write, target, tmp_path):
    folder = changed(write(tmp_path, target), one_more("target_layer_ids"))
    line = refusal(folder, target)
    assert "layer id 3 is past the last that drafters tap, 2 of 4 layers" in line
    assert "these ids seem to count from 1" in line


def test_layer_ids_that_count_from_0_where_the_layout_counts_from_1(target, tmp_path):
    folder = f.speculators_dflash(tmp_path, target, aux_hidden_state_layer_ids=list(f.TAPS))
    assert "layer id 0 is the embedding" in refusal(folder, target)
    past = f.speculators_dflash(tmp_path, target, aux_hidden_state_layer_ids=[1, 4])
    assert "target layer 3 cannot be tapped" in refusal(past, target)


def test_two_places_for_layer_ids_that_do_not_differ_by_one(target, tmp_path):
    folder = f.sglang_eagle3(tmp_path, target, eagle_aux_hidden_state_layer_ids=[0, 1, 2])
    line = refusal(folder, target)
    assert "[0, 1, 2] in eagle_config, which counts from 0, and [0, 1, 2] at the top" in line


@pytest.mark.parametrize(("kind", "from_anchor", "made"), [(None, True, 5), ("vanilla", False, 3)])
def test_a_slot_layout_that_contradicts_speculative_tokens(kind, from_anchor, made, target, tmp_path):
    folder = f.speculators_dflash(tmp_path, target, kind, sample_from_anchor=from_anchor)
    line = refusal(folder, target)
    assert "it says 4 speculative_tokens" in line
    assert f"sample_from_anchor {str(from_anchor).lower()} makes {made}" in line


def test_as_many_layers_as_fc_takes(target, tmp_path):
    folder = changed(
        f.deepspec_dspark(tmp_path, target), lambda config, tensors: config.update(target_layer_ids=[0, 1, 2])
    )
    assert "fc takes 2 layers of width 48, and 3 are named" in refusal(folder, target)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda d2t, rows: d2t + rows, "it holds token ids, where the layout has token id - row"),
        (lambda d2t, rows: -d2t, "its sign is wrong: it holds row - token id"),
        (lambda d2t, rows: d2t + 1, "its offsets do not name each of its tokens once"),
    ],
)
def test_a_vocabulary_map_of_another_kind(change, fault, target, tmp_path):
    def put(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["d2t"] = change(tensors["d2t"], torch.arange(40))

    folder = changed(f.sglang_eagle3(tmp_path, target), put)
    assert fault in refusal(folder, target, CheckpointError)


def test_a_rank_in_two_places_that_differs(target, tmp_path):
    folder = changed(
        f.sglang_dflash(tmp_path, target, "vanilla"), lambda config, tensors: config.update(markov_rank=9)
    )
    assert "markov_rank is 5 in dflash_config and 9 beside it" in refusal(folder, target)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention layers"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rotary positions are of type 'yarn'"),
        ({"attention_bias": True}, "biases in its projections"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"model_type": "mamba"}, "layers are those of model_type 'mamba'"),
        ({"markov_head_type": "deep"}, "markov_head_type is 'deep'"),
    ],
)
def test_layers_and_heads_of_a_kind_that_is_not_computed(change, said, target, tmp_path):
    folder = changed(f.deepspec_dspark(tmp_path, target), lambda config, tensors: config.update(change))
    assert said in refusal(folder, target)


def test_tensors_that_are_missing_unknown_or_of_another_shape(target, tmp_path):
    lacking = changed(
        f.deepspec_dspark(tmp_path / "a", target),
        lambda config, tensors: tensors.pop("layers.1.mlp.up_proj.weight"),
    )
    assert "drafter.layers.1.mlp.up_proj.weight is missing" in refusal(lacking, target, CheckpointError)
    more = changed(
        f.sglang_dflash(tmp_path / "b", target), lambda config, tensors: tensors.update(extra=torch.zeros(2))
    )
    assert "1 tensors that the layout sglang-dflash does not know: extra" in refusal(
        more, target, CheckpointError
    )
    other = changed(
        f.sglang_dflash(tmp_path / "c", target), lambda config, tensors: config.update(head_dim=8)
    )
    assert "has shape [48, 48] instead of [24, 48]" in refusal(other, target, CheckpointError)
    damaged = changed(
        f.deepspec_dspark(tmp_path / "d", target), lambda config, tensors: config.pop("block_size")
    )
    assert "its config.json is damaged: 'block_size' is missing" in refusal(damaged, target, CheckpointError)


def test_an_unknown_layout_says_what_was_looked_for(target, tmp_path):
    folder = f.save(tmp_path, {"architectures": ["Medusa"]}, {"a": torch.zeros(1)})
    line = refusal(folder, target, CheckpointError)
    assert "has no known layout: its architectures are Medusa; looked for: " in line
    for known in (
        "Qwen3DSparkModel",
        "Qwen3Eagle3Model",
        "dflash_config",
        "speculators_model_type",
        "Eagle3",
    ):
        assert known in line


def test_pickled_weights_come_with_the_way_to_convert_them(target, tmp_path, monkeypatch):
    folder = f.sglang_dflash(tmp_path, target)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    line = refusal(folder, target, CheckpointError)
    assert "has pickled weights, which can run code and are never read" in line
    command = line.partition("in its folder: ")[2].removeprefix("python -c '").removesuffix("'")
    monkeypatch.chdir(folder)
    exec(compile(command, "convert", "exec"), {})
    assert open_draft(str(folder), target=target).parts.drafter.name == "dflash"


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "nobody/nothing", "a b"])
def test_a_checkpoint_that_is_not_there(name, target):
    assert f"draft {name!r} " in refusal(Path(name), target, TargetError)


def test_what_the_file_does_not_know_and_nobody_says(target, tmp_path):
    folder = f.deepspec_dspark(tmp_path, target)
    with pytest.raises(ConfigError, match="does not name its target; give --target NAME"):
        open_draft(str(folder))


def test_two_files_without_an_index_are_not_guessed_at(target, tmp_path):
    folder = f.sglang_dflash(tmp_path, target)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    assert open_draft(str(folder), target=target).parts.drafter.name == "dflash"
    save_file({"a": torch.zeros(1)}, folder / "two.safetensors")
    assert "2 safetensors files and no model.safetensors.index.json" in refusal(folder, target, TargetError)
