"""The enumeration: every combination of registered verifier, policy and head keeps the law, to rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.exact.law import Strings, all_blocks, one_request, two_requests
from deepspec.exact.noise import NoBoxesError, VerdictCutter, shared_noise
from deepspec.exact.parts import random_parts
from deepspec.exact.properties import EXACT
from deepspec.exact.rows import Rows, sampler_edges
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import LengthPolicy
from deepspec.plugins import create_plugin_manager, list_parts, resolve_part
from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.strategy import Strategy
from deepspec.types import Draft, Load, TargetRows
from deepspec.verifiers.block import BlockVerifier
from tests.exact.made_parts import Peeks, Still, Told, built, constant_target
from tests.exact_statistics.compositions import THOROUGH

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def registered(kind: str) -> list[str]:
    manager = create_plugin_manager()
    return sorted({p.name for p in list_parts(manager) if _is(manager, kind, p.name)})


def _is(manager: object, kind: str, name: str) -> bool:
    try:
        return resolve_part(manager, kind, name) is not None
    except ValueError:
        return False


PRODUCT = list(itertools.product(registered("verifier"), registered("policy"), registered("head")))


@pytest.mark.parametrize(("verifier", "policy", "head"), PRODUCT)
def test_every_verifier_policy_and_head_keeps_the_law(verifier: str, policy: str, head: str) -> None:
    lengths = set()
    for seed, confidence in enumerate(("linear", "row_max")):
        strategy = Strategy.named("dflash").replace(
            draft_length=2, head={"type": head, "confidence": confidence}, policy=policy, verifier=verifier
        )
        target = ToyTarget(3, seed=seed)
        parts = random_parts(strategy, target, seed)
        laws = one_request(target, parts, [0, 2, 1])
        lengths.update(laws.lengths)
        assert laws.error <= EXACT
        assert shared_noise(target, parts, [0, 1]).error <= EXACT
        target = ToyTarget(2, seed=seed)
        assert two_requests(target, random_parts(strategy, target, seed), ([0, 1], [1, 1, 0])).error <= EXACT
    # The lengths are really the policy's: topk has a budget, which may not reach every drafted token.
    assert max(lengths) == 2 or (policy == "topk" and max(lengths) == 1)


@settings(max_examples=30 if THOROUGH else 10)
@given(
    verifier=st.sampled_from(registered("verifier")),
    threshold=st.floats(0, 1),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**31),
    prompts=st.tuples(*[st.lists(st.integers(0, 1), min_size=1, max_size=4)] * 2),
)
def test_any_weights_text_threshold_and_temperature_keep_the_law(
    verifier: str, threshold: float, temperature: float, seed: int, prompts: tuple[list[int], list[int]]
) -> None:
    policy = {"type": "threshold", "threshold": threshold}
    strategy = Strategy.named("dspark").replace(draft_length=2, policy=policy, verifier=verifier)
    target = ToyTarget(3, seed=seed)
    assert one_request(target, random_parts(strategy, target, seed), prompts[0], temperature).error <= EXACT
    target = ToyTarget(2, seed=seed)
    assert two_requests(target, random_parts(strategy, target, seed), prompts).error <= EXACT


def test_laws_are_laws_and_errors_are_seen() -> None:
    target = ToyTarget(3, seed=1)
    laws = one_request(
        target, random_parts(Strategy.named("dspark").replace(draft_length=2), target, 1), [0, 1]
    )
    for law in (laws.emitted, laws.target):
        assert float(law.min()) >= 0
        torch.testing.assert_close(law.sum(), torch.tensor(1.0).double())
    assert laws.emitted.shape == (3**6,)
    target = constant_target(0.7, 0.3)
    assert one_request(target, built(target, 2, Still, Told, Peeks), [0, 1]).error > 1e-3


def test_strings_are_numbered_level_by_level_and_completed_by_the_law() -> None:
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).double()
    strings = Strings(2, 2, lambda before: p[before.shape[1]].expand(len(before), -1))
    assert len(strings) == 7
    assert strings.number(torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])).tolist() == [0, 2, 6]
    assert strings.target_law().tolist() == [0.125, 0.125, 0.375, 0.375]
    mass = torch.zeros(7).double()
    mass[2] = 1.0
    assert strings.completed(mass).tolist() == [0, 0, 0.5, 0.5]
    assert all_blocks(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_policy_of_short_drafts_or_none_keeps_the_law() -> None:
    class Short(LengthPolicy):
        name = "short"
        needs_confidence = False
        most = 1

        def draft_length(self, load: Load) -> int:
            return self.most

        def lengths(self, survival: torch.Tensor, drafted: torch.Tensor, load: Load) -> torch.Tensor:
            return drafted

    target = constant_target(0.2, 0.5, 0.3)
    for Short.most in (0, 1):
        parts = built(target, 2, Still, Short)
        assert one_request(target, parts, [0, 1]).error <= EXACT
        assert two_requests(target, parts, ([0, 1], [2, 1])).error <= EXACT
        assert shared_noise(target, parts, [0, 1]).error <= EXACT


def test_the_samplers_intervals_are_its_probabilities_also_of_tokens_without_any() -> None:
    rows = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    edges = sampler_edges(rows.log(), batch_sampling([SamplingParams()] * 4, 3, CPU))
    torch.testing.assert_close(edges.diff(dim=-1), rows, atol=1e-14, rtol=0)
    greedy = sampler_edges(rows.log(), batch_sampling([SamplingParams(temperature=0)] * 4, 3, CPU))
    assert greedy.diff(dim=-1).argmax(dim=-1).tolist() == [0, 1, 0, 2]
    assert (
        sampler_edges(torch.zeros(2, 1).double(), batch_sampling([SamplingParams()] * 2, 1, CPU)).tolist()
        == [[0, 1]] * 2
    )


def test_a_chosen_block_is_drawn_by_the_real_sampler() -> None:
    target = ToyTarget(3)
    parts = random_parts(Strategy.named("dspark").replace(draft_length=2), target, 0)
    blocks = all_blocks(3, 2)
    chosen = Rows(target, parts, [[0, 2]] * 9).draft(blocks)
    assert torch.equal(chosen.draft.tokens, blocks)
    torch.testing.assert_close(chosen.weight, chosen.draft.log_q.exp().prod(dim=1), atol=1e-13, rtol=0)
    torch.testing.assert_close(chosen.weight.sum(), torch.tensor(1.0).double())


def test_the_block_rule_accepts_what_its_paper_says() -> None:
    """The two-token example of Sun et al.: 10/9 under the token rule, 11/9 under the block rule."""
    target = constant_target(1 / 3, 2 / 3)
    drafter = constant_target(2 / 3, 1 / 3)
    q = drafter.info.lm_head[:, -1]
    blocks = all_blocks(2, 2)
    log_q = q[blocks]
    draft = Draft(blocks, q.expand(4, 2, 2), torch.zeros(4, 2).double(), log_q)
    rows = TargetRows(
        target.info.lm_head[:, -1].expand(12, 2),
        torch.arange(4) * 3,
        batch_sampling([SamplingParams()] * 4, 2, CPU),
    )
    parts = built(target, 2, Still, verifier="block")
    token = built(target, 2, Still, verifier="token")
    expected = []
    for verifier in (token.verifier, parts.verifier):
        outcome = verifier.outcome(rows, draft, torch.full((4,), 2)).sum(dim=-1)
        expected.append(float((outcome @ torch.arange(3.0).double()) @ log_q.exp().prod(dim=1)))
    assert expected == pytest.approx([10 / 9, 11 / 9])


def test_a_verifier_whose_verdicts_never_settle_is_refused() -> None:
    class Chaotic(BlockVerifier):
        name = "chaotic"

        def verify(self, target, draft, lengths, uniforms):
            verdict = super().verify(target, draft, lengths, uniforms)
            wild = (uniforms.accept[:, 0] * 1e9).long() % 2
            return type(verdict)(verdict.accepted, wild)

    target = constant_target(0.5, 0.5)
    parts = built(target, 1, Still, Chaotic)
    rows = Rows(target, parts, [[0, 1]])
    draft = rows.draft(torch.tensor([[0]])).draft
    with pytest.raises(NoBoxesError, match="its verdict changes"):
        VerdictCutter(parts.verifier, rows.verify_rows(draft), draft, torch.tensor([1])).boxes()
