"""The negative controls: eight ways in which lossless decoding is broken in the field, each caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepspec.engine import draft as drafting
from deepspec.engine import noise as engine_noise
from deepspec.exact.contracts import policy
from deepspec.exact.law import Laws, one_request, two_requests
from deepspec.exact.noise import shared_noise
from deepspec.exact.parts import ToyDrafter, random_parts
from deepspec.exact.properties import EXACT, Subject, noise, output_law, recorded_q, verdict_law
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import Part
from deepspec.plugins import create_plugin_manager, register
from deepspec.sampling import Drawn, sampler, scale
from deepspec.sampling.streams import Stream
from deepspec.strategy import Strategy
from deepspec.types import Sampling
from tests.exact import made_parts
from tests.exact.made_parts import (
    Certain,
    DeepestFirst,
    Gates,
    OneNoise,
    ScaledSurvival,
    Search,
    Still,
    Told,
    built,
    constant_target,
)

PROMPT = [0, 1]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def subject(*parts: type[Part], **names: object) -> Subject:
    """The standard composition with these parts, and the toy drafter."""
    manager = create_plugin_manager()
    register(manager, made_parts._Plugin((ToyDrafter, *parts)), name="made")
    chosen = {
        "drafter": "toy",
        "head": "markov",
        "policy": "threshold",
        **{p.kind: p.name for p in parts},
        **names,
    }
    return Subject(Strategy(name="made", draft_length=3, **chosen), manager)


def first_token(laws: Laws, vocab: int) -> Tensor:
    """The law of the first token of the (first) request."""
    return laws.emitted.reshape(vocab, -1).sum(dim=1)


def test_1_an_unconstrained_search_on_live_confidences() -> None:
    target = constant_target(0.7, 0.3)
    laws = one_request(target, built(target, 2, Still, Told, Search), PROMPT)
    torch.testing.assert_close(first_token(laws, 2), torch.tensor([0.85, 0.15]).double())
    assert not policy(subject(Search)).passed


def test_2_ties_that_put_the_deeper_position_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "second", (1.0, 0.5))
    target = constant_target(0.7, 0.3)
    parts = built(target, 2, Still, Told, DeepestFirst)
    assert one_request(target, parts, PROMPT).error <= EXACT
    assert two_requests(target, parts, (PROMPT, PROMPT)).error > 0.01
    assert not policy(subject(DeepestFirst)).passed


def test_3_a_factor_for_each_position_after_the_cumulative_product() -> None:
    target = constant_target(0.7, 0.3)
    assert one_request(target, built(target, 2, Still, Told, ScaledSurvival), PROMPT).error > 0.01
    found = policy(subject(ScaledSurvival))
    assert not found.passed
    assert not output_law(subject(ScaledSurvival)).passed


def test_4_a_tokens_own_probability_as_its_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    target = constant_target(0.7, 0.3)
    parts = built(target, 1, Certain, head={"type": "none", "confidence": "row_max"}, policy="threshold")
    assert one_request(target, parts, PROMPT).error <= EXACT
    monkeypatch.setattr(
        drafting, "_largest_log_odds", lambda logits, sampling, drawn: drawn.log_q.exp().logit()
    )
    laws = one_request(target, parts, PROMPT)
    torch.testing.assert_close(first_token(laws, 2), torch.tensor([0.91, 0.09]).double())


def test_5_two_requests_that_gate_each_other() -> None:
    target = constant_target(0.7, 0.3)
    laws = two_requests(target, built(target, 2, Still, Told, Gates), (PROMPT, PROMPT))
    for axis in (0, 1):  # each alone is right, together they are not
        torch.testing.assert_close(laws.emitted.sum(axis), laws.target.sum(axis), atol=EXACT, rtol=0)
    assert laws.error > 0.01
    assert not policy(subject(Gates)).passed


def _before_temperature(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Drawn:
    drawn = HONEST(logits, sampling, uniforms)
    log_q = logits.log_softmax(dim=-1).gather(-1, drawn.tokens[:, None])[:, 0]
    return Drawn(drawn.tokens, drawn.log_sum_exp, log_q)


def _sampled_in_bfloat16(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Drawn:
    drawn = HONEST(logits.bfloat16(), sampling, uniforms)
    values = scale(logits, sampling)
    log_sum_exp = values.logsumexp(dim=-1)
    log_q = values.gather(-1, drawn.tokens[:, None])[:, 0] - log_sum_exp
    return Drawn(drawn.tokens, log_sum_exp, log_q)


HONEST = sampler.draw_draft


@pytest.mark.parametrize("bad", [_before_temperature, _sampled_in_bfloat16])
def test_6_a_recorded_q_that_is_not_the_sampled_one(bad: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "draw_draft", bad)
    assert not recorded_q(subject()).passed
    assert not output_law(subject()).passed


def test_7_one_noise_for_acceptance_and_residual() -> None:
    assert output_law(subject(OneNoise)).passed  # what it states is right, what it does is not
    assert not verdict_law(subject(OneNoise)).passed
    assert not noise(subject(OneNoise)).passed


def test_8_uniforms_keyed_by_position_under_the_block_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, keys = subject(verifier="block"), engine_noise._columns
    for check in (output_law, verdict_law, noise):
        assert check(honest).passed

    def by_position(num_draft: int, reads: frozenset[str]) -> object:
        offsets, indices, streams, sizes = keys(num_draft, reads)
        accept = streams == Stream.ACCEPT
        return offsets + accept * (indices + 1), indices * ~accept, streams, sizes

    monkeypatch.setattr(engine_noise, "_columns", by_position)
    assert output_law(honest).passed
    found = noise(honest)
    assert not found.passed
    assert found.error > 1e-4
    target = ToyTarget(3)
    assert (
        shared_noise(target, random_parts(subject().strategy, target, 0, honest.manager), PROMPT).error
        <= EXACT
    )
