"""Draft weights that start from the target's: whose, and when not."""

from __future__ import annotations

import pytest
import torch

from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.train.assemble import assemble, copy_target_layers
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
