"""The toy target: its law is what its forwards compute, and the real engine runs on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError
from deepspec.exact.parts import random_parts
from deepspec.exact.properties import Subject
from deepspec.interfaces import LengthPolicy
from deepspec.plugins import create_plugin_manager
from deepspec.strategy import Strategy
from deepspec.testing import ToyTarget
from deepspec.types import Load, RoundRecord, Span, TokenBatch
from tests.exact.made_parts import Still, built


def test_the_law_is_that_of_packed_forwards_in_any_pieces_and_after_a_rollback() -> None:
    target = ToyTarget(5, seed=3)
    texts = [[0, 1, 4, 2, 2, 3], [3, 3, 1]]
    cache = target.new_slots(3, 8)
    target.forward(torch.tensor([0, 1, 3, 4, 4]), [Span(2, 0, 2), Span(0, 0, 3)], cache, ())
    features = target.forward(torch.tensor([4, 2, 2, 3, 3, 1]), [Span(2, 2, 4), Span(0, 1, 2)], cache, (0, 2))
    assert features.tapped.shape == (6, 16)
    laws = target.logits(features.last_hidden).softmax(dim=-1)
    torch.testing.assert_close(laws[3], target.law(texts[0]))
    torch.testing.assert_close(laws[5], target.law(texts[1]))
    whole = target.forward(torch.tensor(texts[0]), [Span(0, 0, 6)], None, (0, 2))
    torch.testing.assert_close(whole.tapped[2:], features.tapped[:4])
    assert target.law(texts[1], 0.0).max() == 1
    torch.testing.assert_close(
        target.law(torch.tensor([texts[1]] * 2), 0.5)[0], (laws[5].log() * 2).softmax(-1)
    )


def test_features_of_packed_documents_are_those_of_each_alone() -> None:
    target = ToyTarget(5)
    tokens = torch.tensor([[0, 1, 4, 2, 3]])
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    batch = TokenBatch(tokens, torch.tensor([[0, 0, 1, 1, 1]]), positions, tokens >= 0)
    alone = target.forward(tokens[0, 2:], [Span(0, 0, 3)], None, (1,))
    torch.testing.assert_close(target.features(batch, (1,)).tapped[0, 2:], alone.tapped)


def test_a_layer_that_cannot_be_tapped_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target layer 3 .* 0\.\.2"):
        ToyTarget().check_layers((0, 3))


def test_a_strategy_that_names_deep_layers_is_checked_on_a_deep_target() -> None:
    strategy = Strategy.named("dflash").replace(drafter={"target_layers": [1, 17]})
    target, parts = Subject(strategy, create_plugin_manager()).build(3, 2, 0)
    assert target.info.num_layers == 19
    assert parts.drafter.target_layers == (1, 17)


def test_a_strategy_that_names_a_token_of_a_large_vocabulary_is_checked_with_one_of_the_few() -> None:
    strategy = Strategy.named("dspark").replace(drafter={"mask_token_id": 151_669})
    subject = Subject(strategy, create_plugin_manager())
    _, parts = subject.build(3, 2, 0)
    assert parts.drafter.reserved_token_ids == (2,)
    named = replace(subject, strategy=strategy.replace(drafter={"mask_token_id": 1}))
    assert named.build(3, 2, 0)[1].drafter.reserved_token_ids == (1,)


def test_a_strategy_that_drafts_many_tokens_of_a_large_vocabulary_is_checked_without_one_of_the_few() -> None:
    strategy = Strategy.named("eagle3").replace(drafter={"draft_vocab_size": 32_000})
    subject = Subject(strategy, create_plugin_manager())
    for given, number in ((32_000, 2), (3, 3), (1, 1)):
        chosen = replace(subject, strategy=strategy.replace(drafter={"draft_vocab_size": given}))
        assert len(chosen.build(3, 2, 0)[1].drafter.readout().weight) == number


def test_the_engine_decodes_it_and_the_delta_rule_equals_plain_decoding() -> None:
    target = ToyTarget(7, seed=2)
    strategy = Strategy.named("dspark").replace(draft_length=3, policy="threshold", verifier="delta")
    parts = random_parts(strategy, target, 0)
    prompts = [[1, 2, 3], [4], [5, 6]]
    params = [SamplingParams(seed=i, max_tokens=12) for i in range(3)]
    plain = Engine(target, None, max_positions=64).run(prompts, params)
    assert [c.tokens for c in Engine(target, parts, max_positions=64).run(prompts, params)] == [
        c.tokens for c in plain
    ]


def test_a_policy_that_reads_no_confidence_still_chooses_the_lengths() -> None:
    class HalfOfIt(LengthPolicy):
        name = "half"
        needs_confidence = False

        def lengths(self, survival: torch.Tensor, drafted: torch.Tensor, load: Load) -> torch.Tensor:
            assert torch.equal(survival, torch.ones(len(drafted), 4))
            return drafted // 2

    target = ToyTarget(3)
    records: list[RoundRecord] = []
    parts = built(target, 4, Still, HalfOfIt)
    Engine(target, parts, max_positions=32, observers=[records.append]).run(
        [[0]], SamplingParams(max_tokens=9)
    )
    assert {(r.drafted, r.verified) for record in records for r in record.requests} == {(4, 2)}
