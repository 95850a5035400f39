"""The Eagle 3 drafter: its unroll in training is its decoding, and sees nothing that decoding has not."""

from __future__ import annotations

import pytest
import torch
from deepspec_strategies.eagle3.drafter import Eagle3Drafter, spread_layers

from deepspec.exact.contracts import drafter_block
from deepspec.exact.properties import Finding, Subject
from deepspec.nn import unrolled
from deepspec.plugins import create_plugin_manager
from deepspec.strategy import Strategy
from deepspec.target import Target
from deepspec.types import Features
from tests.strategies.stepping import blocks, packed_batch, stepped
from tests.tiny_models import masked_target

G = 4
ROWS, COLUMNS = [1, 0, 1, 0, 1, 0], [15, 3, 2, 19, 12, 1]
DEPTHS = pytest.mark.parametrize("num_layers", [1, 3])


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


def _drafter(target: Target, num_layers: int, **options: object) -> Eagle3Drafter:
    torch.manual_seed(0)
    chosen = Strategy.named("eagle3").replace(draft_length=G, drafter={"num_layers": num_layers, **options})
    parts = chosen.build(target.info)
    parts.modules().double().eval()
    for norm in (module for module in parts.drafter.modules() if module.__class__.__name__ == "RMSNorm"):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return parts.drafter


@DEPTHS
@pytest.mark.parametrize("slots", [None, [4, 0, 5, 2, 7, 3]], ids=["neighbours", "scattered"])
@torch.no_grad()
def test_block_equals_steps_after_ragged_chunks_refusals_and_a_preemption(target, num_layers, slots):
    drafter, batch = _drafter(target, num_layers), packed_batch()
    features = target.features(batch, drafter.target_layers)
    anchors = blocks(batch, ROWS, COLUMNS, G)
    trained = drafter.block(batch, features, anchors)
    for seed in range(3):
        found = stepped(drafter, batch, features, anchors, slots=slots, seed=seed)
        torch.testing.assert_close(found, trained, atol=1e-6, rtol=1e-6)


@DEPTHS
@torch.no_grad()
def test_one_request_drafts_as_many_do(target, num_layers):
    drafter, batch = _drafter(target, num_layers), packed_batch()
    features = target.features(batch, drafter.target_layers)
    for row, column in zip(ROWS, COLUMNS, strict=True):
        anchors = blocks(batch, [row], [column], G)
        trained = drafter.block(batch, features, anchors)
        torch.testing.assert_close(stepped(drafter, batch, features, anchors), trained, atol=1e-6, rtol=1e-6)


@DEPTHS
def test_a_plain_causal_mask_over_all_steps_fails_the_comparison(target, num_layers, monkeypatch):
    """The classic leak: later steps' keys seen by rotary position alone, those of other anchors too."""

    def leaky(self, batch, grid, num_draft, dtype):
        context = grid.context(batch)
        context[..., 0] |= ~context.any(dim=-1)
        columns = grid.scatter(grid.anchors.columns)
        earlier = (columns[:, None, :] <= columns[:, :, None]).repeat(1, 1, num_draft - 1)
        seen = torch.cat([context, earlier], dim=-1)
        return unrolled.attention_mask(seen, self.layers[0].self_attn.heads_per_kv, dtype)

    monkeypatch.setattr(unrolled.Unroll, "_unroll_mask", leaky)
    drafter, batch = _drafter(target, num_layers), packed_batch()
    anchors = blocks(batch, ROWS, COLUMNS, G)
    with torch.no_grad():
        features = target.features(batch, drafter.target_layers)
        difference = drafter.block(batch, features, anchors) - stepped(drafter, batch, features, anchors)
    assert difference[:, 0].abs().max() < 1e-6
    assert difference[:, 1:].abs().max() > 1e-2
    assert not _contract(num_layers).passed


@DEPTHS
@torch.no_grad()
def test_an_anchor_sees_features_before_it_and_its_own_labels_alone(target, num_layers):
    drafter, batch = _drafter(target, num_layers), packed_batch()
    features = target.features(batch, drafter.target_layers)
    anchors = blocks(batch, [0, 0], [8, 11], G)
    before = drafter.block(batch, features, anchors)
    changed = Features(features.tapped.clone(), features.last_hidden)
    changed.tapped[0, 8:] += 1.0
    after = drafter.block(batch, changed, anchors)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-3
    changed.tapped[0, 7] += 1.0
    assert (drafter.block(batch, changed, anchors) - after)[0].abs().max() > 1e-3


def test_every_weight_gets_a_finite_gradient_also_with_empty_cells(target):
    drafter, batch = _drafter(target, 2), packed_batch()
    with torch.no_grad():
        features = target.features(batch, drafter.target_layers)
    drafter.block(batch, features, blocks(batch, [0, 0, 0, 1], [3, 5, 9, 2], G)).square().sum().backward()
    for name, weight in drafter.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def test_default_layers_are_the_published_ones_for_36():
    assert spread_layers(36) == (1, 17, 32)
    assert spread_layers(12) == (1, 5, 8)
    assert spread_layers(2) == (0,)


def test_deepspec_check_finds_a_drafter_that_sees_past_a_shorter_request(monkeypatch):
    monkeypatch.setattr(unrolled, "additive_mask", lambda seen, dtype: torch.zeros(seen.shape, dtype=dtype))
    assert not _contract(1).passed


@DEPTHS
def test_deepspec_check_finds_no_fault(num_layers):
    assert _contract(num_layers).passed


def _contract(num_layers: int) -> Finding:
    """The property "drafter block" of `deepspec check`."""
    strategy = Strategy.named("eagle3").replace(drafter={"num_layers": num_layers})
    with torch.no_grad():
        return drafter_block(Subject(strategy, create_plugin_manager()))
