"""The shipped heads against their formulas, one token at a time; training's block() is decoding's steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deepspec.interfaces import SequentialHead
from deepspec.strategy import Strategy
from deepspec.target import Target
from tests.exact_statistics.compositions import HEADS, tiny_target

N, G, RANK, VOCAB = 3, 4, 5, 11
LOW_RANK = ["gated", "markov", "rnn"]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB)


def build(target: Target, name: str, *, is_random: bool = True, **options: object) -> SequentialHead:
    torch.manual_seed(0)
    strategy = Strategy.named("dflash").replace(head={"type": name, **options})
    head = strategy.build(target.info).head.double()
    if is_random:
        for weight in head.parameters():
            nn.init.normal_(weight, std=0.5)
    return head


def inputs(target: Target) -> tuple[Tensor, Tensor]:
    hidden = torch.randn(N, G, target.info.hidden_size, dtype=torch.float64)
    return torch.randint(0, VOCAB, (N, G)), hidden


@pytest.mark.parametrize("confidence", ["linear", "row_max", "none"])
@pytest.mark.parametrize("name", HEADS)
def test_a_block_is_its_steps(target: Target, name: str, confidence: str) -> None:
    head = build(target, name, confidence=confidence)
    previous, hidden = inputs(target)
    whole, state = head.block(previous, hidden), head.begin(hidden[:, 0])
    assert head.confidence == confidence
    assert (whole.confidence is not None) == (confidence == "linear")
    for k in range(G):
        step, state = head.step(previous[:, k], hidden[:, k], state)
        for one, every in ((step.latent, whole.latent), (step.confidence, whole.confidence)):
            assert (one is None) == (every is None)
            if one is not None:
                torch.testing.assert_close(one, every[:, k])


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_low_rank_head_starts_at_no_correction_and_learns_from_there(target: Target, name: str) -> None:
    head = build(target, name, is_random=False, rank=RANK)
    previous, hidden = inputs(target)
    latent = head.block(previous, hidden).latent
    assert latent.shape == (N, G, RANK)
    correction = latent @ head.output_weight.T
    assert not correction.any()
    correction[..., 0].sum().backward()
    assert head.output_weight.grad.abs().min(dim=1).values[0] > 0


def test_the_gated_heads_latent_is_the_embedding_behind_a_gate(target: Target) -> None:
    head = build(target, "gated", rank=RANK)
    previous, hidden = inputs(target)
    found = head.block(previous, hidden).latent
    for n in range(N):
        for k in range(G):
            e, h = head.markov_w1.weight[previous[n, k]], hidden[n, k]
            gate = torch.sigmoid(head.gate_proj.weight @ torch.cat([h, e]) + head.gate_proj.bias)
            torch.testing.assert_close(found[n, k], gate * e)


def test_the_rnn_heads_state_is_a_gated_mean_of_what_it_has_seen(target: Target) -> None:
    head = build(target, "rnn", rank=RANK)
    previous, hidden = inputs(target)
    found = head.block(previous, hidden).latent
    for n in range(N):
        s = torch.zeros(RANK, dtype=torch.float64)
        for k in range(G):
            z = torch.cat([s, head.markov_w1.weight[previous[n, k]], hidden[n, k]])
            g, c, o = (head.joint_proj.weight @ z + head.joint_proj.bias).split(RANK)
            s = torch.sigmoid(g) * s + (1 - torch.sigmoid(g)) * torch.tanh(c)
            torch.testing.assert_close(found[n, k], torch.tanh(o))


@pytest.mark.parametrize("name", LOW_RANK)
def test_confidence_reads_the_hidden_state_and_the_previous_token(target: Target, name: str) -> None:
    head = build(target, name, rank=RANK)
    previous, hidden = inputs(target)
    linear, e = head.confidence_head, head.markov_w1.weight[previous]
    expected = torch.cat([hidden, e], dim=-1) @ linear.weight[0] + linear.bias
    torch.testing.assert_close(head.block(previous, hidden).confidence, expected)


def test_only_the_rnn_head_remembers_tokens_before_the_last(target: Target) -> None:
    previous, hidden = inputs(target)
    other = previous.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCAB
    for name, remembers in (("markov", False), ("gated", False), ("rnn", True)):
        head = build(target, name)
        change = head.block(previous, hidden).latent[:, 1:] - head.block(other, hidden).latent[:, 1:]
        assert (change.abs().max() > 1e-6) == remembers
