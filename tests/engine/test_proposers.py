"""Model-free drafters in the real engine: exact, ragged, counted, and refused when they break the rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import deepspec.engine.loop as loop_module
from deepspec.engine import Completion, Engine, SamplingParams
from deepspec.errors import PluginError
from deepspec.evaluate import measure_acceptance
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target
from deepspec.types import Anchors, Proposal, RequestRound, RoundRecord
from tests.engine.test_engine import _HostCopies
from tests.exact import made_parts
from tests.exact.made_parts import Echo
from tests.exact_statistics.compositions import VERIFIERS, tiny_target

DRAFT_LENGTH, VOCAB, NUM_TOKENS, NUM = 4, 12, 24, 9


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB, initializer_range=0.3)


def _parts(target: Target, part: type[Echo] = Echo, **names: str) -> Parts:
    manager = create_plugin_manager()
    register(manager, made_parts._Plugin((part,)), name="made")
    strategy = Strategy(name="made", draft_length=DRAFT_LENGTH, drafter=part.name, **names)
    return strategy.build(target.info, manager=manager)


def _run(target: Target, parts: Parts | None, temperature: float = 1.0, **options: int) -> list[Completion]:
    prompts = [[(7 * i + j * j) % VOCAB for j in range(1 + i)] for i in range(NUM)]
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=NUM_TOKENS) for i in range(NUM)]
    return Engine(target, parts, max_positions=64, **options).run(prompts, params)


def _rounds(target: Target, parts: Parts) -> tuple[list[Completion], list[list[RequestRound]]]:
    records: list[RoundRecord] = []
    done = _run(target, parts, max_batch=NUM, observers=[records.append])
    flat = [r for record in records for r in record.requests]
    return done, [[r for r in flat if r.request_id == i] for i in range(NUM)]


def _tokens(done: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in done]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_delta_rule_equals_plain_decoding(target: Target, temperature: float) -> None:
    parts = _parts(target, verifier="delta")
    assert _tokens(_run(target, parts, temperature)) == _tokens(_run(target, None, temperature))


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_tokens_are_the_same_alone_and_in_batches(target: Target, verifier: str) -> None:
    parts = _parts(target, verifier=verifier)
    alone = _tokens(_run(target, parts, max_batch=1))
    assert _tokens(_run(target, parts, max_batch=3, prefill_chunk=3)) == alone
    assert _tokens(_run(target, parts, max_batch=NUM)) == alone


def _proposed(text: list[int]) -> int:
    """How many tokens Echo proposes after ``text``."""
    before = [place for place, token in enumerate(text[:-1]) if token == text[-1]]
    return min(DRAFT_LENGTH, len(text) - 1 - before[-1]) if before else 0


def test_rounds_count_what_was_proposed_and_empty_ones_decode_plainly(target: Target) -> None:
    done, rounds = _rounds(target, _parts(target))
    seen = set()
    for completion, each in zip(done, rounds, strict=True):
        text = [*completion.prompt, completion.tokens[0]]
        for r in each:
            assert (r.drafted, r.verified) == (_proposed(text), r.drafted)
            assert 0 <= r.accepted <= r.verified
            assert (r.rejected is None) == (r.accepted == r.verified)
            text += r.tokens
            seen.add(r.drafted)
        assert text == [*completion.prompt, *completion.tokens]
    assert seen == set(range(DRAFT_LENGTH + 1))


def test_a_position_is_looked_at_only_where_something_was_proposed_for_it(target: Target) -> None:
    _, rounds = _rounds(target, _parts(target))
    found = measure_acceptance(rounds, draft_length=DRAFT_LENGTH)
    every = [r for each in rounds for r in each]
    looked = [sum(r.drafted >= k and r.accepted >= k - 1 for r in every) for k in range(1, DRAFT_LENGTH + 1)]
    taken = [sum(r.accepted >= k for r in every) for k in range(1, DRAFT_LENGTH + 1)]
    assert found.rates.observed == tuple(looked)
    assert found.rates.accepted == tuple(taken)
    assert looked[0] < len(every) == found.num_rounds  # rounds without a proposal count for tau alone
    gained = sum(r.accepted + 1 for r in every)
    assert found.accepted_length.mean == pytest.approx(gained / len(every))


def test_one_host_copy_a_round_and_nobody_waits(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, to_host, parts = [], loop_module.to_host, _parts(target)
    monkeypatch.setattr(loop_module, "to_host", lambda *args: copies.append(1) or to_host(*args))
    records: list[RoundRecord] = []
    with _HostCopies() as mode:
        _run(target, parts, observers=[records.append])
    assert len(copies) == len(records)
    assert mode.count == 0


class Foreign(Echo):
    """Proposes an id that the target does not have, once in a while."""

    name = "foreign"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return replace(proposal, tokens=torch.where(proposal.tokens == 3, VOCAB, proposal.tokens))


class Careless(Echo):
    """What lies past its lengths is no token."""

    name = "careless"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        past = torch.arange(anchors.num_draft) >= proposal.lengths[:, None]
        return replace(proposal, tokens=proposal.tokens.masked_fill(past, -7))


def test_a_token_that_the_target_does_not_have_stops_the_engine_in_one_line(target: Target) -> None:
    with pytest.raises(PluginError, match=r"drafter 'foreign' proposed a token outside 0\.\.11 or") as raised:
        _run(target, _parts(target, Foreign))
    assert "\n" not in str(raised.value)


def test_neither_padded_rows_nor_what_lies_past_a_proposal_matter(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, make = _tokens(_run(target, _parts(target))), loop_module.Loop.__init__
    assert _tokens(_run(target, _parts(target, Careless))) == expected

    def padded(self: loop_module.Loop, *args: object, **options: object) -> None:
        make(self, *args, **options)
        self.packs_rows = False  # as on a GPU, where nobody waits for the lengths

    monkeypatch.setattr(loop_module.Loop, "__init__", padded)
    assert _tokens(_run(target, _parts(target, Careless))) == expected
