"""Draft weights that start from the target's: whose, and when not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from deepspec.errors import ConfigError
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target
from deepspec.train.assemble import assemble, copy_target_layers
from deepspec.train.prepare import _start_from_target as start_from_target
from tests.tiny_models import FAMILIES, make, make_target
from tests.tiny_runs import strategy

#: A norm's factors are read off at ones, where its epsilon of 1e-6 takes half a millionth away; its own
#: arithmetic is float32.
NORM_TOLERANCE = {"rtol": 2e-6, "atol": 1e-6}


def build(target: Target, **drafter: object) -> Parts:
    chosen = strategy(drafter={"mask_token_id": 1, **drafter})
    return assemble(chosen, target, device=torch.device("cpu"), dtype=torch.float64, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_draft_layers_multiply_as_the_targets_last_ones_do(family):
    target = make_target(make(family), name=family)
    decoder = target.model.get_decoder()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()
    drafter = build(target, num_layers=2).drafter
    if not copy_target_layers(drafter, target):
        assert family == "llama"  # it has no norms of queries and keys
        return
    for ours, theirs in zip(drafter.layers, decoder.layers[-2:], strict=True):
        assert ours.mlp.up_proj.weight.equal(theirs.mlp.up_proj.weight)
        x = torch.randn(3, target.info.hidden_size, dtype=torch.float64)
        torch.testing.assert_close(ours.input_layernorm(x), theirs.input_layernorm(x), **NORM_TOLERANCE)
    torch.testing.assert_close(drafter.norm(x), decoder.norm(x), **NORM_TOLERANCE)


def test_nothing_is_copied_when_one_tensor_has_another_shape():
    target = make_target(make("qwen3"), name="qwen3")
    drafter = build(target, intermediate_size=target.info.hidden_size + 1).drafter
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    assert copy_target_layers(drafter, target) == 0
    assert all(tensor.equal(before[name]) for name, tensor in drafter.state_dict().items())


def test_every_stack_of_a_list_starts_from_the_targets_last_layer_and_norm():
    target = make_target(make("qwen3"), name="qwen3")
    chosen = Strategy.named("mtp").replace(draft_length=2, drafter={"modules": "each"})
    drafter = chosen.build(target.info).drafter.double()
    copied = copy_target_layers(drafter, target)
    last = target.model.get_decoder().layers[-1]
    assert copied == 2 * (len(last.state_dict()) + 1)
    for module in drafter.depths:
        assert module.layers[0].self_attn.q_proj.weight.equal(last.self_attn.q_proj.weight)


def test_weights_that_come_from_elsewhere_are_kept():
    target = make_target(make("qwen3"), name="qwen3")
    parts = build(target, num_layers=2)
    before = parts.drafter.layers[0].mlp.up_proj.weight.clone()
    trained = replace(parts, drafter=Pretrained(parts.drafter))
    start_from_target(trained, target, is_required=False)
    assert trained.drafter.layers[0].mlp.up_proj.weight.equal(before)
    with pytest.raises(ConfigError, match="have weights already"):
        start_from_target(trained, target, is_required=True)


class Pretrained(nn.Module):
    """Another drafter's layers, said to be of use as they are."""

    pretrained = True

    def __init__(self, drafter: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = drafter.layers, drafter.norm
