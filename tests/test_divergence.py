"""The benchmark of divergences: what counts as explained, and that a wrong rule is not."""

from __future__ import annotations

from dataclasses import replace

import divergence
import pytest
import torch

from deepspec.interfaces import RoundUniforms
from deepspec.sampling.categorical import BLOCK, draw
from deepspec.types import Draft, TargetRows, Verdict
from deepspec.verifiers.delta import DeltaVerifier
from tests.exact_statistics.compositions import build, tiny_target


class _OffByOne(DeltaVerifier):
    """Closes a round by the neighbour of the token that was drawn."""

    name = "off-by-one"

    def verify(
        self, target: TargetRows, draft: Draft, lengths: torch.Tensor, uniforms: RoundUniforms
    ) -> Verdict:
        verdict = super().verify(target, draft, lengths, uniforms)
        return replace(verdict, bonus=(verdict.bonus + 1) % target.logits.shape[1])


@pytest.mark.parametrize("size", [5, 2 * BLOCK])
def test_a_margin_is_zero_for_the_token_drawn_and_the_way_to_any_other(size: int) -> None:
    weights = torch.zeros(size, dtype=torch.float64)
    last = size - 1
    weights[[0, last]] = torch.tensor([1.0, 3.0], dtype=torch.float64)
    noise = (0.2, 0.2)
    assert int(draw(weights[None], torch.tensor([noise]).double())) == 0
    assert divergence.margin(weights, noise, 0) == 0
    assert divergence.margin(weights, noise, last) == pytest.approx(0.05)


def test_equal_rules_never_diverge_in_float64_and_a_wrong_one_is_not_explained() -> None:
    target = tiny_target(12, initializer_range=0.3)
    parts = build(target.info, "dspark", 3, target.dtype, verifier="delta")
    prompts = [[i % 12, 3, 5] for i in range(6)]
    right = divergence.measure(target, parts, prompts, 8, 4)
    assert (right["divergences"], right["compared_tokens"]) == (0, 48)
    rule = _OffByOne(parts.verifier.config, parts.verifier.context)
    wrong = divergence.measure(target, replace(parts, verifier=rule), prompts, 8, 4)
    assert wrong["divergences"] == 6
    assert wrong["explained"] < 6
