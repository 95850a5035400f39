"""Released MTP weights: read from safetensors into a module that computes what its model's code does."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspec_strategies.mtp.drafter import MTPDrafter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen3NextConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5RMSNorm,
    Qwen3_5TextRotaryEmbedding,
)
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextDecoderLayer,
    Qwen3NextRMSNorm,
    Qwen3NextRotaryEmbedding,
)

from deepspec.config import TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError, TargetError
from deepspec.interfaces import LayerTraits, Rope
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target, load_target
from tests.families import plain as hybrid
from tests.strategies.stepping import blocks, packed_batch, stepped
from tests.tiny_models import masked_target
from tests.tiny_tokenizer import tokenizer

G = 3
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
}


QWEN_NAMES = {
    "project.": "mtp.fc.",
    "embedding_norm.": "mtp.pre_fc_norm_embedding.",
    "hidden_norm.": "mtp.pre_fc_norm_hidden.",
    "layer.": "mtp.layers.0.",
    "norm.": "mtp.norm.",
}


class Released(nn.Module):
    """A model's own MTP module, written down with transformers' layers of that model."""

    def __init__(
        self, config: Any, layer: nn.Module, norm: Callable[[int], nn.Module], rotary: nn.Module
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self.embedding_norm, self.hidden_norm, self.norm = norm(size), norm(size), norm(size)
        self.project = nn.Linear(2 * size, size, bias=False)
        self.layer, self.rotary = layer, rotary

    def forward(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states ``[L, H]`` of one text before and after the final norm."""
        both = torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], dim=-1)
        x = self.project(both)[None]
        positions = torch.arange(x.shape[1])[None]
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        x = self.layer(x, position_embeddings=self.rotary(x, positions), attention_mask=mask)
        x = (x[0] if isinstance(x, tuple) else x)[0]
        return x, self.norm(x)


def _qwen3_next(folder: Path, **changes: object) -> Released:
    """Qwen3-Next's layout: gated attention, a quarter of a head rotated, norms less one; in two shards."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    config = Qwen3NextConfig(
        **SIZES, num_experts=0, layer_types=["full_attention"] * 4, rope_parameters=rope, **changes
    )
    config._attn_implementation = "eager"
    released = _random(
        Released(
            config,
            Qwen3NextDecoderLayer(config, 0),
            lambda size: Qwen3NextRMSNorm(size, eps=1e-6),
            Qwen3NextRotaryEmbedding(config),
        )
    )
    _save(folder, config, _renamed(released, QWEN_NAMES), num_shards=2)
    return released


def _deepseek(folder: Path) -> Released:
    """DeepSeek-V3's layout with standard attention, in one file beside other tensors."""
    config = LlamaConfig(**SIZES, rms_norm_eps=1e-6)
    config._attn_implementation = "eager"
    released = _random(
        Released(
            config,
            LlamaDecoderLayer(config, 0),
            lambda size: LlamaRMSNorm(size, eps=1e-6),
            LlamaRotaryEmbedding(config),
        )
    )
    extra = "model.layers.4."
    names = {
        "project.": f"{extra}eh_proj.",
        "embedding_norm.": f"{extra}enorm.",
        "hidden_norm.": f"{extra}hnorm.",
        "layer.": extra,
        "norm.": f"{extra}shared_head.norm.",
    }
    tensors = _renamed(released, names)
    for copied in ("embed_tokens.weight", "shared_head.head.weight"):
        tensors[extra + copied] = torch.zeros(97, 48)
    _save(folder, config, tensors)
    return released


def _glm(folder: Path) -> Released:
    """DeepSeek's names under GLM's: what is fed back is the family's, not the layout's."""
    released = _deepseek(folder)
    place = folder / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "model_type": "glm4_moe"}))
    return released


def _random(released: Released) -> Released:
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in released.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5))
    return released


def _renamed(released: Released, names: dict[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in released.state_dict().items():
        start = next((start for start in names if name.startswith(start)), None)
        if start is not None:
            tensors[names[start] + name.removeprefix(start)] = tensor.clone()
    return tensors


def _save(folder: Path, config: Any, tensors: dict[str, Tensor], *, num_shards: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    tensors = {"model.embed_tokens.weight": torch.zeros(2, 2), **tensors}
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {name: f"model-{number % num_shards}.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, where in weight_map.items() if where == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


LAYOUTS = pytest.mark.parametrize(
    ("write", "feeds_normed"),
    [(_qwen3_next, True), (_deepseek, False), (_glm, True)],
    ids=["qwen3-next", "deepseek-v3", "glm"],
)


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


def _parts(target: Target, folder: Path, **options: object) -> Parts:
    config = folder / "config.json"
    if config.exists() and "linear_num_key_heads" in config.read_text():  # the family's positions and norms
        family = {"rope": Rope.plain(1e4, 4), "traits": LayerTraits(unit_offset=True)}
        target = replace(target, info=replace(target.info, **family))
    chosen = Strategy.named("mtp").replace(draft_length=G, drafter={"native_weights": str(folder), **options})
    parts = chosen.build(target.info)
    parts.modules().double().eval()
    return parts


@LAYOUTS
@torch.no_grad()
def test_the_module_computes_what_the_released_one_does(target, tmp_path, write, feeds_normed):
    released = write(tmp_path).double()
    batch = packed_batch()
    features = target.features(batch, ())
    drafter = _parts(target, tmp_path).drafter
    column = 12
    tokens, hidden = batch.tokens[0, 1 : column + 1], features.last_hidden[0, :column]
    before, normed = released(target.info.embedding[tokens], hidden)
    anchors = blocks(batch, [0], [column], G)
    found = drafter.block(batch, features, anchors)[0]
    torch.testing.assert_close(found[0], normed[-1], atol=1e-5, rtol=1e-5)
    # Recycled: the state of the last row goes in again, beside the first drafted token, one row further.
    handed = normed if feeds_normed else before
    tokens = torch.cat([tokens, anchors.labels[0, :1]])
    _, again = released(target.info.embedding[tokens], torch.cat([hidden, handed[-1:]]))
    torch.testing.assert_close(found[1], again[-1], atol=1e-5, rtol=1e-5)
    stepping = stepped(drafter, batch, features, anchors)[0]
    torch.testing.assert_close(stepping, found, atol=1e-6, rtol=1e-6)


@LAYOUTS
def test_a_checkpoint_needs_the_released_folder_no_more(target, tmp_path, write, feeds_normed):
    write(tmp_path)
    parts = _parts(target, tmp_path)
    assert parts.drafter.pretrained
    options = parts.strategy.drafter.options
    assert options["native_weights"] is None
    assert options["feed_back"] == ("post_norm" if feeds_normed else "pre_norm")
    rebuilt = parts.strategy.build(target.info).drafter
    assert not rebuilt.pretrained
    rebuilt.double().load_state_dict(parts.drafter.state_dict())


def test_each_of_several_modules_starts_from_the_released_one(target, tmp_path):
    _deepseek(tmp_path)
    drafter = _parts(target, tmp_path, modules="each", feed_back="post_norm").drafter
    assert isinstance(drafter, MTPDrafter)
    assert len(drafter.depths) == G
    for module in drafter.depths:
        assert module.input_proj.weight.equal(drafter.depths[0].input_proj.weight)
    assert drafter.saved_options["feed_back"] == "post_norm"


def test_released_weights_draft_as_they_are(target, tmp_path):
    _qwen3_next(tmp_path)
    engine = Engine(target, _parts(target, tmp_path), max_batch=2)
    done = engine.run([[1, 2, 3], [4, 5]], SamplingParams(max_tokens=6, ignore_stop=True))
    assert [len(request.tokens) for request in done] == [6, 6]


def test_native_weights_go_with_the_target_that_they_were_released_with(tmp_path):
    """Both from one folder, a hybrid's: the target's code drops the module, which drafts with its states."""
    model = hybrid("Qwen3.5")
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    config = deepcopy(model.config)
    released = _random(
        Released(
            config,
            Qwen3_5DecoderLayer(config, 1),
            lambda size: Qwen3_5RMSNorm(size, eps=1e-6),
            Qwen3_5TextRotaryEmbedding(config),
        )
    )
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, **_renamed(released, QWEN_NAMES)}, tmp_path / "model.safetensors", {"format": "pt"})
    target = load_target(TargetConfig(name=str(tmp_path)), device="cpu")
    chosen = Strategy.named("mtp").replace(draft_length=G, drafter={"native_weights": str(tmp_path)})
    parts = chosen.build(target.info)
    batch, column = packed_batch(), 12
    features = target.features(batch, ())
    tokens, hidden = batch.tokens[0, 1 : column + 1], features.last_hidden[0, :column]
    with torch.no_grad():
        _, normed = released(target.info.embedding[tokens], hidden)
        found = parts.drafter.block(batch, features, blocks(batch, [0], [column], G))[0]
    torch.testing.assert_close(found[0], normed[-1], atol=1e-5, rtol=1e-5)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_stop=True)
    drafted = Engine(target, parts).run([[1, 2, 3], [4, 5]], params)
    plain = Engine(target).run([[1, 2, 3], [4, 5]], params)
    assert [done.tokens for done in drafted] == [done.tokens for done in plain]


def _rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    _deepseek(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


EXTRA = "model.layers.4."


def _latent(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{EXTRA}self_attn.q_proj.weight"]
    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"):
        tensors[f"{EXTRA}self_attn.{name}.weight"] = torch.zeros(2, 2)


def _experts(tensors: dict[str, Tensor]) -> None:
    for number in range(4):
        tensors[f"{EXTRA}mlp.experts.{number}.up_proj.weight"] = torch.zeros(2, 2)


def _absent(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith(EXTRA)]:
        del tensors[name]


def _damaged(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{EXTRA}enorm.weight"]


def _wider(tensors: dict[str, Tensor]) -> None:
    tensors[f"{EXTRA}eh_proj.weight"] = torch.zeros(64, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_latent, r"self_attn\.kv_a_proj_with_mqa\.weight, .* and 1 more of .* do not fit"),
        (_experts, r"mlp\.experts\.0\.up_proj\.weight, .* and 1 more of .* do not fit"),
        (_absent, r"has no MTP weights, neither mtp\.\* nor model\.layers\.4\.\*"),
        (_damaged, r"lacks token_layernorm\.weight"),
        (_wider, r"input_proj\.weight has shape \[64, 128\], and this target needs \[48, 96\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(target, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as refused:
        _parts(target, _rewritten(tmp_path, change))
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_none_and_sizes_beside_the_weights_are_refused(target, tmp_path):
    with pytest.raises(TargetError, match=r"drafter.native_weights .*nowhere' "):
        _parts(target, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="native_weights come with their own num_heads"):
        _parts(target, tmp_path, num_heads=4)
