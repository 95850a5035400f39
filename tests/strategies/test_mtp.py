"""The MTP drafter, one recycled module or one for each token: training is decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from deepspec_strategies.mtp.drafter import MTPDrafter

from deepspec.exact.contracts import drafter_block
from deepspec.exact.properties import Subject
from deepspec.plugins import create_plugin_manager
from deepspec.strategy import Strategy
from deepspec.target import Target
from deepspec.types import AnchorBlocks, Features, TokenBatch
from tests.strategies.stepping import blocks, packed_batch, stepped
from tests.tiny_models import masked_target

G = 4
ROWS, COLUMNS = [1, 0, 1, 0, 1, 0], [14, 3, 2, 19, 12, 1]
MODULES = pytest.mark.parametrize("modules", [1, "each"])


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


def _drafter(target: Target, modules: object = 1, **options: object) -> MTPDrafter:
    torch.manual_seed(0)
    chosen = Strategy.named("mtp").replace(draft_length=G, drafter={"modules": modules, **options})
    parts = chosen.build(target.info)
    parts.modules().double().eval()
    for norm in (module for module in parts.drafter.modules() if module.__class__.__name__ == "RMSNorm"):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return parts.drafter


def _blocks(batch: TokenBatch, rows: list[int], columns: list[int]) -> AnchorBlocks:
    """Anchors with the text's own tokens as labels."""
    made = blocks(batch, rows, columns, G)
    reach = made.columns[:, None] + torch.arange(G + 1)
    tokens = batch.tokens[made.rows[:, None], reach]
    return replace(made, labels=tokens[:, 1:], previous=tokens[:, :-1])


@MODULES
@pytest.mark.parametrize("feed_back", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("slots", [None, [4, 0, 5, 2, 7, 3]], ids=["neighbours", "scattered"])
@torch.no_grad()
def test_block_equals_steps_after_ragged_chunks_refusals_and_a_preemption(target, modules, feed_back, slots):
    drafter, batch = _drafter(target, modules, feed_back=feed_back), packed_batch()
    features = target.features(batch, ())
    anchors = _blocks(batch, ROWS, COLUMNS)
    trained = drafter.block(batch, features, anchors)
    for seed in range(3):
        found = stepped(drafter, batch, features, anchors, slots=slots, seed=seed)
        torch.testing.assert_close(found, trained, atol=1e-6, rtol=1e-6)


@MODULES
@torch.no_grad()
def test_one_request_drafts_as_many_do(target, modules):
    drafter, batch = _drafter(target, modules), packed_batch()
    features = target.features(batch, ())
    for row, column in zip(ROWS, COLUMNS, strict=True):
        anchors = _blocks(batch, [row], [column])
        trained = drafter.block(batch, features, anchors)
        torch.testing.assert_close(stepped(drafter, batch, features, anchors), trained, atol=1e-6, rtol=1e-6)


@MODULES
@torch.no_grad()
def test_an_anchor_sees_states_before_it_alone(target, modules):
    drafter, batch = _drafter(target, modules), packed_batch()
    features = target.features(batch, ())
    anchors = _blocks(batch, [0], [8])
    before = drafter.block(batch, features, anchors)
    changed = Features(features.tapped, features.last_hidden.clone())
    changed.last_hidden[0, 8:] += 1.0
    torch.testing.assert_close(drafter.block(batch, changed, anchors), before)
    changed.last_hidden[0, 7] += 1.0
    difference = (drafter.block(batch, changed, anchors) - before)[0].abs().amax(dim=-1)
    assert difference.min() > 1e-4, "every position depends on the last state"


@MODULES
def test_every_weight_gets_a_finite_gradient(target, modules):
    drafter, batch = _drafter(target, modules), packed_batch()
    with torch.no_grad():
        features = target.features(batch, ())
    drafter.block(batch, features, _blocks(batch, ROWS, COLUMNS)).square().sum().backward()
    for name, weight in drafter.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


@MODULES
@pytest.mark.parametrize("feed_back", ["pre_norm", "post_norm"])
def test_deepspec_check_finds_no_fault(modules, feed_back):
    strategy = Strategy.named("mtp").replace(drafter={"modules": modules, "feed_back": feed_back})
    with torch.no_grad():
        assert drafter_block(Subject(strategy, create_plugin_manager())).passed


@torch.no_grad()
def test_each_module_reads_the_one_before_it_and_one_token_further(target):
    """h^d_i from h^{d-1}_i and token i + d, computed plainly for one text, zeros before the first state."""
    drafter, batch = _drafter(target, "each", feed_back="pre_norm"), packed_batch()
    features = target.features(batch, ())
    states = features.last_hidden[0]
    column = 12
    found = drafter.block(batch, features, _blocks(batch, [0], [column]))[0]
    before = dict(enumerate(states[:column]))
    for depth, module in enumerate(drafter.depths, start=1):
        positions = range(1 - depth, column)
        hidden = torch.stack([before.get(i, torch.zeros_like(states[0])) for i in positions])
        tokens = batch.tokens[0, [i + depth for i in positions]]
        x = _plain_layer(module.layer[0], module.enter(tokens, hidden)[0])
        before = dict(zip(positions, x, strict=True))
        torch.testing.assert_close(module.norm(x[-1]), found[depth - 1], atol=1e-5, rtol=1e-5)


def _plain_layer(layer, x):
    """A Qwen3 decoder layer over ``x [L, H]``, without any of our attention."""
    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    positions = torch.arange(len(x), dtype=torch.float64)
    steps = torch.arange(0, attention.head_dim, 2, dtype=torch.float64)
    angles = positions[:, None] * 10_000.0 ** (-steps / attention.head_dim)

    def rotated(heads):
        a, b = heads.chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    query = rotated(attention.q_norm(attention.q_proj(normed).unflatten(-1, (attention.num_heads, -1))))
    key = rotated(attention.k_norm(attention.k_proj(normed).unflatten(-1, (attention.num_kv_heads, -1))))
    value = attention.v_proj(normed).unflatten(-1, (attention.num_kv_heads, -1))
    repeats = attention.num_heads // attention.num_kv_heads
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * attention.head_dim**-0.5
    future = torch.ones(len(x), len(x)).triu(1).bool()
    mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(future, float("-inf")).softmax(-1), value)
    x = x + attention.o_proj(mixed.flatten(1))
    return x + layer.mlp(layer.post_attention_layernorm(x))
