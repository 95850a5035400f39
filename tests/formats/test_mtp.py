"""MTP modules: speculators' layout, and the target's own checkpoint with the module in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from deepspec_strategies.mtp import native_layout
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deepspec.composed import Composed
from deepspec.config import RunConfig
from deepspec.errors import ConfigError
from deepspec.formats.export import export
from deepspec.formats.inspect import inspect_checkpoint
from deepspec.formats.opened import open_draft
from deepspec.strategy import Strategy
from deepspec.target import Target, load_target
from deepspec.train.assemble import assemble
from tests.formats import foreign as f
from tests.formats import forwards
from tests.formats.forwards import Shape, Weights
from tests.formats.ours import CONTEXT, G, drafted
from tests.tiny_models import VOCAB
from tests.tiny_runs import save_target

H, MLP, HEADS, KV_HEADS, HEAD_DIM = f.H, 56, 4, 2, 16
SHAPE = Shape(HEADS, KV_HEADS, HEAD_DIM, theta=10_000.0)


@pytest.fixture(scope="module")
def target() -> Target:
    return f.tiny_target()


def module_tensors(prefix: str) -> Weights:
    return {
        "mtp_layers.0.hidden_layernorm.weight": 1 + f.values(H),
        "mtp_layers.0.token_layernorm.weight": 1 + f.values(H),
        "mtp_layers.0.final_layernorm.weight": 1 + f.values(H),
        "mtp_layers.0.input_proj.weight": f.values(H, 2 * H),
        "mtp_layers.0.self_attn.q_proj.weight": f.values(HEADS * HEAD_DIM, H),
        "mtp_layers.0.self_attn.k_proj.weight": f.values(KV_HEADS * HEAD_DIM, H),
        "mtp_layers.0.self_attn.v_proj.weight": f.values(KV_HEADS * HEAD_DIM, H),
        "mtp_layers.0.self_attn.o_proj.weight": f.values(H, HEADS * HEAD_DIM),
        "mtp_layers.0.self_attn.q_norm.weight": 1 + f.values(HEAD_DIM),
        "mtp_layers.0.self_attn.k_norm.weight": 1 + f.values(HEAD_DIM),
        "mtp_layers.0.mlp.gate_proj.weight": f.values(MLP, H),
        "mtp_layers.0.mlp.up_proj.weight": f.values(MLP, H),
        "mtp_layers.0.mlp.down_proj.weight": f.values(H, MLP),
        "mtp_layers.0.input_layernorm.weight": 1 + f.values(H),
        "mtp_layers.0.post_attention_layernorm.weight": 1 + f.values(H),
    }


def speculators_mtp(folder: Path) -> Path:
    config = {
        "speculators_model_type": "mtp",
        "architectures": ["MTPDraftModel"],
        "transformer_layer_config": {
            **f.decoder(1),
            "intermediate_size": MLP,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
        },
        "num_nextn_predict_layers": 1,
        "speculators_config": f.proposal("mtp", G),
    }
    return f.save(folder, config, module_tensors("mtp_layers.0."))


def described(w: Weights, target: Target, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """``[embed ; hidden]`` projected, one causal layer, a final norm; the last is fed back as it is."""
    layer, states, logits = forwards.below(w, "mtp_layers.0."), list(hidden), []
    own = forwards.below(layer, "self_attn.")
    for _ in range(G):
        h = torch.stack(states)
        e = target.info.embedding[tokens[1 : len(h) + 1]]
        normed = [forwards.norm(e, layer["token_layernorm.weight"], 1e-6)]
        normed.append(forwards.norm(h, layer["hidden_layernorm.weight"], 1e-6))
        x = torch.cat(normed, -1) @ layer["input_proj.weight"].T
        read, positions = forwards.norm(x, layer["input_layernorm.weight"], 1e-6), torch.arange(len(h))
        query, keys, values = (forwards.projected(read, positions, own, SHAPE, kind) for kind in "qkv")
        seen = torch.ones(len(h), len(h)).tril().bool()
        out = forwards.attend(query, keys, values, seen, HEAD_DIM**-0.5).flatten(1) @ own["o_proj.weight"].T
        final = forwards.norm(
            forwards.after_attention(x, out, layer, SHAPE)[-1], layer["final_layernorm.weight"], 1e-6
        )
        logits.append(final @ target.info.lm_head.T)
        states.append(final)
    return torch.stack(logits)


def test_speculators_mtp_is_as_described_and_written_again_the_same(target, tmp_path):
    torch.manual_seed(1)
    folder = speculators_mtp(tmp_path / "theirs")
    subject = open_draft(str(folder), target=target)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB - 1, (CONTEXT + 1 + G,), generator=generator)
    hidden = torch.randn(CONTEXT, H, generator=generator)
    found, _ = drafted(subject.parts, tokens, hidden)
    before = load_file(folder / "model.safetensors")
    torch.testing.assert_close(found, described(before, target, tokens, hidden), atol=1e-5, rtol=1e-5)
    written = export(subject, "speculators", tmp_path / "ours").folder
    after = load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs, ours = (json.loads((place / "config.json").read_text()) for place in (folder, written))
    assert {key: ours[key] for key in theirs} == theirs


@pytest.fixture(params=["deepseek", "qwen"])
def family(request, monkeypatch) -> str:
    """The tiny target's family has a module by those names."""
    is_qwen = request.param == "qwen"
    monkeypatch.setitem(native_layout._FAMILIES, "qwen3", (is_qwen, "num_nextn_predict_layers"))
    return request.param


def stitched(folder: Path, family: str) -> tuple[Path, Composed]:
    """A random module for a target on disk, put into its checkpoint."""
    place = save_target(folder / "target")
    options = {
        "attention_gate": family == "qwen",
        "feed_back": "post_norm" if family == "qwen" else "pre_norm",
    }
    strategy = Strategy.named("mtp").replace(draft_length=3, drafter=options)
    config = RunConfig.model_validate({"strategy": strategy.model_dump(), "target": {"name": str(place)}})
    target = load_target(config.target, device="cpu")
    parts = assemble(strategy, target, device=target.device, dtype=torch.float32, seed=0)
    for parameter in parts.modules().parameters():
        parameter.data.add_(torch.randn(parameter.shape).mul_(0.2).bfloat16().float())
    return place, Composed(config, target, parts)


def test_a_module_goes_into_its_targets_checkpoint_and_comes_out_again(family, tmp_path):
    place, subject = stitched(tmp_path, family)
    made = export(subject, "vllm", tmp_path / "whole")
    assert made.commands["vllm"] == (
        f'vllm serve {made.folder} --speculative-config \'{{"method": "mtp", "num_speculative_tokens": 3}}\''
    )
    assert "--speculative-algorithm NEXTN" in made.commands["sglang"]
    assert json.loads((made.folder / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert (made.folder / "tokenizer.json").exists()
    alone, whole = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (place, made.folder))
    assert all(torch.equal(alone[name], whole[name]) for name in alone)
    again = open_draft(str(made.folder), target=subject.target)
    assert again.origin.format == "native-mtp"
    ours, theirs = subject.parts.modules().state_dict(), again.parts.modules().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=2e-7, rtol=0)
    twice = export(again, "sglang", tmp_path / "twice")
    first, second = (load_file(path / "model-draft.safetensors") for path in (made.folder, twice.folder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    facts = inspect_checkpoint(str(made.folder))
    assert facts.layout == "native-mtp"
    assert "behind the final norm" in facts.facts["fed back"] or family == "deepseek"


def test_the_targets_own_module_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setitem(native_layout._FAMILIES, "qwen3", (True, "num_nextn_predict_layers"))
    place, subject = stitched(tmp_path, "qwen")
    held = load_file(place / "model.safetensors")
    save_file(
        {**held, "mtp.fc.weight": torch.zeros(2, 2)}, place / "model.safetensors", metadata={"format": "pt"}
    )
    made = export(subject, "vllm", tmp_path / "whole")
    assert "mtp.fc.weight" not in load_file(made.folder / "model.safetensors")
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["mtp.fc.weight"] == "model-draft.safetensors"
    assert set(index["weight_map"]) == {*held, *load_file(made.folder / "model-draft.safetensors")}


def test_how_many_tokens_are_drafted_is_the_users_where_the_file_does_not_say(family, tmp_path):
    _, subject = stitched(tmp_path, family)
    made = export(subject, "vllm", tmp_path / "whole")
    found = open_draft(str(made.folder), target=subject.target, changes={"draft_length": 2})
    assert found.parts.strategy.draft_length == 2
    with pytest.raises(ConfigError, match="'draft_length' of a trained run cannot be changed"):
        open_draft(str(speculators_mtp(tmp_path / "s")), target=f.tiny_target(), changes={"draft_length": 2})


def test_a_family_without_such_a_module_and_a_layer_of_another_kind_are_refused(tmp_path, monkeypatch):
    _, subject = stitched(tmp_path, "qwen")
    with pytest.raises(ConfigError, match="model_type 'qwen3' have no place for an MTP module"):
        export(subject, "vllm", tmp_path / "out")
    monkeypatch.setitem(native_layout._FAMILIES, "qwen3", (False, "num_nextn_predict_layers"))
    with pytest.raises(ConfigError, match="has no gate in its attention"):
        export(subject, "sglang", tmp_path / "out")
    with pytest.raises(ConfigError, match="attention is not like that of Qwen3"):
        export(subject, "speculators", tmp_path / "out")
    with pytest.raises(ConfigError, match="--to deepspec: no layout of it is for drafter 'mtp'"):
        export(subject, "deepspec", tmp_path / "out")
