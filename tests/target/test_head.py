"""A target without its layers: the same head, single layers on demand, and files told apart unread."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.config import TargetConfig
from deepspec.errors import TargetError
from deepspec.target import load_target
from deepspec.target.head import load_head, weights_digest
from tests.tiny_models import FAMILIES, make
from tests.tiny_runs import VOCAB, save_target
from tests.tiny_tokenizer import tokenizer


@pytest.fixture(scope="module", params=[*FAMILIES, "tied"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TargetConfig:
    folder = tmp_path_factory.mktemp("target")
    if request.param == "tied":
        save_target(folder, tie_word_embeddings=True)
    else:
        model = make(request.param, torch.float32, vocab_size=VOCAB, tie_word_embeddings=False)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return TargetConfig(name=str(folder), dtype="bfloat16")


def test_what_is_there_is_as_in_the_whole_target(config: TargetConfig) -> None:
    head, whole = load_head(config, device="cpu", fingerprint="known"), load_target(config, device="cpu")
    assert head.fingerprint == "known"
    assert (head.is_whole, whole.is_whole) == (False, True)
    for name, value in vars(whole.info).items():
        if isinstance(value, torch.Tensor):
            assert value.equal(getattr(head.info, name)), name
        elif name != "vocabulary":
            assert value == getattr(head.info, name), name
    hidden = torch.randn(5, whole.info.hidden_size).to(whole.dtype)
    assert head.logits(hidden).equal(whole.logits(hidden))
    assert head.stop_token_ids == whole.stop_token_ids
    assert head.info.lm_head.data_ptr() == head.info.embedding.data_ptr() or not tied(config)


def tied(config: TargetConfig) -> bool:
    return "lm_head.weight" not in load_file(Path(config.name) / "model.safetensors")


def test_a_single_layer_is_read_from_the_files(config: TargetConfig) -> None:
    head, whole = load_head(config, device="cpu", fingerprint=""), load_target(config, device="cpu")
    for number in (0, whole.info.num_layers - 1):
        ours, theirs = head.layer(number).state_dict(), whole.layer(number).state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.equal(theirs[name]), name


def test_a_layer_whose_tensors_have_other_names_is_empty(tmp_path: Path) -> None:
    folder = save_target(tmp_path / "target")
    head = load_head(TargetConfig(name=str(folder)), device="cpu", fingerprint="")
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("layers.0.self_attn", "layers.0.attn"): part for name, part in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert not head.layer(0).state_dict()
    assert head.layer(1).state_dict()


def test_files_are_told_apart_by_weights_and_configuration_and_not_by_their_place(tmp_path: Path) -> None:
    folder = save_target(tmp_path / "target")
    first = weights_digest(TargetConfig(name=str(folder)))
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert weights_digest(TargetConfig(name=str(moved))) == first
    assert weights_digest(TargetConfig(name=str(save_target(tmp_path / "other", seed=1)))) != first
    text = (moved / "config.json").read_text()
    (moved / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert weights_digest(TargetConfig(name=str(moved))) != first
    (moved / "config.json").write_text(
        text.replace('"transformers_version": "', '"transformers_version": "9')
    )
    assert weights_digest(TargetConfig(name=str(moved))) == first


def test_a_target_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no safetensors files"):
        weights_digest(TargetConfig(name=str(tmp_path)))
    with pytest.raises(TargetError, match="not in the local cache"):
        weights_digest(TargetConfig(name="nobody/nothing"))
