"""A draft layer by the target's description computes what the target's own layers do, given their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from deepspec.errors import ConfigError
from deepspec.interfaces import LayerTraits
from deepspec.nn import DecoderLayer, GatedMLP, LayerConfig, grouped_attention, rotary_table
from deepspec.target import make_target
from deepspec.target.describe import widest_layer
from tests.families import FAMILIES, SHAPE, gemma2, gemma4, random

LENGTH = 6  # no longer than the window where all layers have one


def _gemma2() -> PreTrainedModel:
    """Without the soft-cap on attention, which draft layers leave out."""
    return gemma2(attn_logit_softcapping=None)


def _gemma4() -> PreTrainedModel:
    """As the larger dense ones: no embeddings of each layer, no shared keys, values that are the keys."""
    plain = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    return gemma4(**plain, attention_k_eq_v=True, num_global_key_value_heads=1)


def _qwen3_yarn() -> PreTrainedModel:
    """Positions whose cosines and sines are scaled, too."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, rope_parameters=yarn))


MODELS = {name: FAMILIES[name] for name in ("Qwen3", "Qwen3.5", "Llama 3, tied", "Mistral", "Gemma 3")}
MODELS |= {"Gemma 2": _gemma2, "Gemma 4": _gemma4, "Qwen3, yarn": _qwen3_yarn}
TRAITS = {
    "Qwen3.5": LayerTraits(unit_offset=True),
    "Gemma 3": LayerTraits(unit_offset=True, activation="gelu_pytorch_tanh", output_norms=True),
    "Gemma 2": LayerTraits(
        unit_offset=True, activation="gelu_pytorch_tanh", output_norms=True, attention_scale=24**-0.5
    ),
    "Gemma 4": LayerTraits(
        activation="gelu_pytorch_tanh",
        output_norms=True,
        value_norm=True,
        keys_are_values=True,
        attention_scale=1.0,
    ),
}


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return grouped_attention(query, keys, values, is_causal=True)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_draft_layer_with_the_targets_weights_is_the_targets_layer(name: str) -> None:
    make: Callable[[], PreTrainedModel] = MODELS[name]
    model = random(make)
    info = make_target(copy.deepcopy(model)).info
    assert info.traits == TRAITS.get(name, LayerTraits())
    layer = model.get_decoder().layers[widest_layer(model.config)]
    kept: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.extend([inputs[0], output])

    layer.register_forward_hook(keep)
    model(input_ids=torch.arange(1, 1 + LENGTH)[None], use_cache=False)
    names = {key for key, _ in layer.named_parameters()}
    ours = DecoderLayer(
        LayerConfig.of(info, qk_norm="self_attn.q_norm.weight" in names, gated=name == "Qwen3.5")
    )
    ours.load_state_dict({key: value for key, value in layer.state_dict().items() if key in names})
    found = ours(kept[0], rotary_table(torch.arange(LENGTH)[None], info.rope, torch.float32), _attend)
    torch.testing.assert_close(found, kept[1], atol=2e-5, rtol=1e-5)


def test_new_queries_are_normed_to_the_usual_scores_whatever_the_family_multiplies_by() -> None:
    model = random(_gemma4)
    attention = DecoderLayer(LayerConfig.of(make_target(model).info)).self_attn
    x = torch.randn(1, LENGTH, 48)
    table = rotary_table(torch.arange(LENGTH)[None], attention.config.rope, torch.float32)
    seen: list[Tensor] = []

    def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen.append(query)
        return grouped_attention(query, keys, values)

    attention(x, table, attend)
    assert seen[0].square().mean().item() == pytest.approx(1, rel=1e-3)


def test_an_activation_that_draft_layers_do_not_have_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="has the activation 'xielu'; a draft layer has silu"):
        GatedMLP(4, 4, "xielu")
