"""Model-free drafters under the check: an honest one passes with every verifier, the others are refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepspec.engine import draft as drafting
from deepspec.engine.draft import Drafted
from deepspec.errors import ConfigError
from deepspec.exact.check import PROPERTIES, _verdict
from deepspec.exact.contracts import drafter_block
from deepspec.exact.law import one_request, two_requests
from deepspec.exact.noise import shared_noise
from deepspec.exact.properties import EXACT, Subject, degenerate_rows, output_law, recorded_q
from deepspec.exact.toy import ToyTarget
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Strategy
from deepspec.testing import check_part
from deepspec.types import Anchors, Draft, Extension, Proposal, TargetRows
from deepspec.verifiers.block import BlockVerifier
from tests.exact import made_parts
from tests.exact.made_parts import Echo, built, constant_target
from tests.exact.test_laws import registered

PROMPT = [0, 1, 2, 0, 1]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def subject(part: type[Echo], **names: object) -> Subject:
    manager = create_plugin_manager()
    register(manager, made_parts._Plugin((part,)), name="made")
    return Subject(Strategy(name="made", draft_length=3, drafter=part.name, **names), manager)


def test_an_honest_proposer_passes_every_property_and_what_cannot_apply_is_said() -> None:
    report = check_part(Echo).raise_if_failed()
    said = {found.name: found.detail for found in report.properties}
    assert list(said) == [name for name, _ in PROPERTIES]
    assert "verify lengths 0, 1, 2, 3)" in said["output law"]
    assert "q = 1, and nothing is sampled" in said["recorded q"]
    assert "a model-free drafter gives none" in said["confidence"]
    assert "no hidden states" in said["head block"]
    assert "after a rollback" in said["drafter block"]


@pytest.mark.parametrize("verifier", registered("verifier"))
def test_every_verifier_keeps_the_law_of_proposals(verifier: str) -> None:
    lengths = set()
    target = ToyTarget(3)
    composed = built(target, 3, Echo, verifier=verifier)
    for prompt in (PROMPT, [0, 2, 1]):
        for temperature in (1.0, 0.6):
            laws = one_request(target, composed, prompt, temperature)
            assert laws.error <= EXACT
            lengths.update(laws.lengths)
    assert shared_noise(target, built(target, 2, Echo, verifier=verifier), PROMPT).error <= EXACT
    target = ToyTarget(2)
    composed = built(target, 2, Echo, verifier=verifier)
    assert two_requests(target, composed, ([0, 1, 1], [1, 0, 1])).error <= EXACT
    assert lengths == {0, 1, 2, 3}


def test_proposals_are_certain_and_one_block_per_text() -> None:
    target = constant_target(0.5, 0.3, 0.2)
    laws = one_request(target, built(target, 3, Echo), PROMPT)
    assert laws.error <= EXACT
    # The anchor 1 was followed by 2, 0, 1: the first of them survives as often as the target says it.
    assert float(laws.emitted.view(3, -1).sum(dim=1)[2]) == pytest.approx(0.2, abs=EXACT)


class TooLong(Echo):
    name = "too-long"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return replace(proposal, lengths=proposal.lengths + anchors.num_draft)


class Negative(Echo):
    name = "negative"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return replace(proposal, lengths=proposal.lengths - 1)


class Foreign(Echo):
    """One of its tokens is no token."""

    name = "foreign"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return replace(proposal, tokens=proposal.tokens + self.context.target.vocab_size - 1)


class Wide(Echo):
    """Always as many as it likes."""

    name = "wide"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return replace(proposal, tokens=proposal.tokens.repeat(1, 2))


class Halves(Echo):
    """Lengths that are no whole numbers."""

    name = "halves"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return replace(proposal, lengths=proposal.lengths / 2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (TooLong, r"proposed a token outside 0\.\.[23] or a length outside 0\.\.G"),
        (Negative, r"proposed a token outside 0\.\.[23] or a length outside 0\.\.G"),
        (Foreign, r"proposed a token outside 0\.\.[23] or a length outside 0\.\.G"),
        (Wide, r"proposed torch.int64 \[\d+, 6\] .*; allowed are torch.int64 \[\d+, 3\]"),
        (Halves, r"proposed .* lengths torch.float32 \[\d+\]; allowed are torch.int64"),
    ],
    ids=lambda value: value.name if isinstance(value, type) else "",
)
def test_what_is_no_proposal_is_refused_and_named(part: type[Echo], message: str) -> None:
    for name, run in (("drafter block", drafter_block), ("output law", output_law)):
        found = _verdict(name, run, subject(part))
        assert not found.passed
        assert re.search(f"could not be checked: PluginError: drafter {part.name!r} {message}", found.detail)


class Neighbourly(Echo):
    """Proposes what its neighbour wrote."""

    name = "neighbourly"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        return Proposal(proposal.tokens.roll(1, dims=0), proposal.lengths.roll(1))


class Counting(Echo):
    """Proposes something else each time it is asked."""

    name = "counting"
    calls = 0

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        self.calls += 1
        return replace(proposal, lengths=proposal.lengths * (self.calls % 2))


class Leftovers(Echo):
    """Reads the whole slot, past its own text, where somebody else's may lie."""

    name = "leftovers"

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        tokens = self.text.read(anchors.slots, self.text.max_positions)[:, -anchors.num_draft - 6 :]
        return Proposal(tokens[:, : anchors.num_draft], torch.full_like(proposal.lengths, anchors.num_draft))


class Remembering(Echo):
    """Does not propose again what it once proposed, although it was refused."""

    name = "remembering"

    def allocate(self, num_slots: int, *rest: object) -> None:
        super().allocate(num_slots, *rest)
        self.asked = torch.zeros(num_slots, dtype=torch.int64)

    def extend(self, extension: Extension) -> None:
        super().extend(extension)
        for span in extension.spans:
            self.asked[span.slot] *= span.start > 0

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        again = self.asked[anchors.slots] % 2
        self.asked[anchors.slots] += 1
        return replace(proposal, lengths=proposal.lengths * (1 - again))


@pytest.mark.parametrize(
    ("part", "way"),
    [
        (Neighbourly, "beside others"),
        (Counting, "asked twice"),
        (Leftovers, "in a used slot"),
        (Remembering, "after a rollback"),
    ],
    ids=lambda value: value.name if isinstance(value, type) else "",
)
def test_a_proposal_that_knows_more_than_its_own_text_is_refused(part: type[Echo], way: str) -> None:
    found = drafter_block(subject(part))
    assert not found.passed
    assert way in found.broken
    assert "tokens depend on its neighbours" in found.broken


def test_a_certain_draft_that_is_recorded_as_uncertain_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = drafting._proposed

    def doubtful(*args: object) -> Drafted:
        drafted = honest(*args)
        return replace(drafted, draft=replace(drafted.draft, log_q=drafted.draft.log_q - 0.5))

    monkeypatch.setattr(drafting, "_proposed", doubtful)
    assert not recorded_q(subject(Echo)).passed
    target = ToyTarget(3)
    assert one_request(target, built(target, 2, Echo), PROMPT).error > 0.01


class Forgets(BlockVerifier):
    """Takes a draft without rows for one whose refused token may come again."""

    name = "forgets"

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: object) -> object:
        return super().verify(target, self._spread(draft, target), lengths, uniforms)

    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        return super().outcome(target, self._spread(draft, target), lengths)

    @staticmethod
    def _spread(draft: Draft, target: TargetRows) -> Draft:
        if draft.logits is not None:
            return draft
        return replace(draft, logits=torch.zeros(*draft.tokens.shape, target.logits.shape[-1]).double())


def test_a_verifier_that_mistakes_certain_drafts_is_caught() -> None:
    manager = create_plugin_manager()
    register(manager, made_parts._Plugin((Forgets, Echo)), name="made")
    strategy = Strategy(name="made", draft_length=3, drafter="echo", verifier="forgets")
    target = ToyTarget(3)
    assert one_request(target, built(target, 2, Echo, Forgets), PROMPT).error > 0.01
    found = degenerate_rows(Subject(strategy, manager))
    assert not found.passed
    assert "wrong for a draft that is certain" in found.broken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "markov"}, "head 'markov' corrects logits .* drafter 'echo', which is model-free"),
        ({"head": {"type": "none", "confidence": "linear"}}, "head 'none' .* drafter 'echo'"),
        ({"head": {"type": "none", "confidence": "row_max"}}, "head 'none' .* with confidence none"),
        ({"policy": "threshold"}, "policy 'threshold' reads confidences and drafter 'echo'"),
    ],
)
def test_parts_that_need_logits_or_confidence_are_refused_when_built(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        built(ToyTarget(3), 3, Echo, **changes)


def test_parts_after_a_proposer_are_built_for_no_hidden_state_and_the_whole_vocabulary() -> None:
    context = built(ToyTarget(5), 3, Echo).policy.context
    assert (context.hidden_size, context.draft_vocab_size) == (0, 5)
