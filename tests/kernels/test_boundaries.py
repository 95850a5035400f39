"""Uniforms exactly on a threshold: probabilities are powers of two, which float32 computes exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.types import Draft, TargetRows
from tests.kernels.rounds import DEVICE, RULES, Round, by_kernels

# The interpreter computes both sides of a tl.where with numpy, which warns of the one that is not taken.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
JUST_BELOW_ONE = 1 - 2.0**-53


def plain_rounds(p: list[list[float]], tokens: list[int], num: int) -> Round:
    """``num`` times one request with one-hot q, whose noise is all 0."""
    num_draft, vocab = len(tokens), len(p[0])
    drafted = torch.tensor([tokens] * num, dtype=torch.int64, device=DEVICE).view(num, num_draft)
    certain = torch.zeros(num, num_draft, device=DEVICE)
    sampling = batch_sampling([SamplingParams()] * num, vocab, DEVICE)
    starts = torch.arange(num, device=DEVICE) * (num_draft + 1)
    rows = TargetRows(torch.tensor(p, device=DEVICE).log().repeat(num, 1), starts, sampling)

    def zeros(*size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.float64, device=DEVICE)

    lengths = torch.full((num,), num_draft, device=DEVICE)
    noise = zeros(num, num_draft), zeros(num, 2), zeros(num, num_draft + 1, 2)
    return Round(rows, Draft(drafted, None, certain, certain), lengths, *noise)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_acceptance_is_strict_at_equality(rule: str) -> None:
    uniforms = torch.tensor(
        [[0.0], [0.5 - 2**-24], [0.5], [JUST_BELOW_ONE]], dtype=torch.float64, device=DEVICE
    )
    even = plain_rounds([[0.5, 0.5], [0.5, 0.5]], [1], 4)
    assert by_kernels(rule, replace(even, accept=uniforms)).accepted.tolist() == [1, 1, 0, 0]
    never = plain_rounds([[1.0, 0.0], [0.5, 0.5]], [1], 4)
    assert by_kernels(rule, replace(never, accept=uniforms)).accepted.tolist() == [0, 0, 0, 0]
    always = plain_rounds([[0.0, 1.0], [0.5, 0.5]], [1], 4)
    assert by_kernels(rule, replace(always, accept=uniforms)).accepted.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("block", "expected"),
    # Masses of the blocks, in quarters: 1 1 0 1 1, then 2 1 1 (a second uniform of 0 takes a block's first).
    [(2, [0, 2, 6, 8, 8]), (4, [0, 0, 6, 8, 8]), (16, [0, 2, 6, 8, 8])],
)
def test_a_draw_on_a_step_gives_the_next_token_and_never_one_without_mass(
    rule: str, block: int, expected: list[int]
) -> None:
    row = [0.25, 0.0, 0.25, 0.0, 0.0, 0.0, 0.25, 0.0, 0.25, 0.0]
    steps = torch.tensor([0.0, 0.25, 0.5, 0.75, JUST_BELOW_ONE], dtype=torch.float64, device=DEVICE)
    noise = torch.stack([steps, steps if block == 16 else 0 * steps], dim=-1)
    given = replace(plain_rounds([row], [], 5), residual=noise, delta=noise[:, None])
    assert by_kernels(rule, given, block=block).bonus.tolist() == expected
