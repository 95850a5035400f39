"""Length policies: exact lengths, and none of them looks past what it admits."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.interfaces import BuildContext, LengthPolicy
from deepspec.policies.fixed import FixedLength
from deepspec.policies.threshold import ThresholdConfig, ThresholdLength
from deepspec.types import Load
from tests.tiny_models import tiny_info


def _threshold(value: float) -> LengthPolicy:
    return ThresholdLength(ThresholdConfig(threshold=value), BuildContext(tiny_info(), 3))


def test_threshold_stops_at_the_first_low_confidence() -> None:
    conditional = torch.tensor([[0.9, 0.4, 0.9], [0.9, 0.8, 0.7], [0.1, 0.9, 0.9], [0.9, 0.9, 0.9]]).double()
    drafted = torch.tensor([3, 3, 3, 2])
    lengths = _threshold(0.5).lengths(conditional.cumprod(1), drafted, Load(4))
    assert lengths.tolist() == [1, 3, 0, 2]


def test_threshold_is_one_of_each_confidence_and_not_of_their_product() -> None:
    conditional = torch.full((1, 3), 0.7).double()
    assert _threshold(0.6).lengths(conditional.cumprod(1), torch.tensor([3]), Load(1)).tolist() == [3]


def test_fixed_verifies_what_was_drafted() -> None:
    policy = FixedLength(FixedLength.Config(), BuildContext(tiny_info(), 3))
    drafted = torch.tensor([3, 0, 2])
    assert policy.lengths(torch.rand(3, 3), drafted, Load(3)).tolist() == [3, 0, 2]
    assert policy.draft_length(Load(3)) == 3


@given(st.integers(0, 100_000), st.floats(0.05, 0.95))
def test_threshold_is_jointly_non_anticipating(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    conditional = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    drafted, load = torch.full((4,), 5), Load(4)
    policy = _threshold(threshold)
    lengths = policy.lengths(conditional.cumprod(1), drafted, load)
    hidden = torch.arange(5) >= lengths[:, None] + 1  # 0-based column l + 1 is confidence c_{l+2}
    other = torch.where(hidden, torch.rand(4, 5, generator=generator, dtype=torch.float64), conditional)
    assert policy.lengths(other.cumprod(1), drafted, load).tolist() == lengths.tolist()
