"""The schedulers that read the past: promises, agreement with brute force, cliffs, and drafting nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepspec.curves import DraftCost, SpsCurve
from deepspec.engine.draft import Drafted, draft_survival
from deepspec.exact import law, rows
from deepspec.exact.law import one_request, two_requests
from deepspec.interfaces import LengthPolicy
from deepspec.kernels.schedule import prefix_lengths
from deepspec.policies.cliff import CliffLength
from deepspec.policies.frugal import FrugalConfig, FrugalLength, brought, fall_of
from deepspec.policies.hull import hull_corners
from deepspec.policies.topk import TopKLength, search_budget
from deepspec.simulate.comparison import context
from deepspec.strategy import Parts
from deepspec.testing import check_part
from deepspec.types import Load
from tests.exact.made_parts import Still, Told, built, constant_target

#: Step time 1 up to 4 tokens, 1.6 up to 8, 2.2 up to 12, then steep.
STAIRS = 1 / torch.tensor([1.0] * 4 + [1.6] * 4 + [2.2] * 4 + [9.0] * 8).double()
PAST = (0.9, 0.8, 0.7)


def made(cls: type[LengthPolicy], num_draft: int = 3, **options: object) -> LengthPolicy:
    return cls(cls.Config(**options), context(num_draft))


@pytest.mark.parametrize("cls", [TopKLength, CliffLength, FrugalLength])
def test_it_keeps_every_promise_of_a_policy_and_the_joint_law_of_two_requests(
    cls: type[LengthPolicy],
) -> None:
    check_part(cls).raise_if_failed()


def stairs(*widths_and_times: tuple[int, float]) -> Tensor:
    """SPS of steps that take a time for so many tokens, then the next."""
    return 1 / torch.tensor([time for width, time in widths_and_times for _ in range(width)]).double()


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("cliff", stairs((4, 1.0), (8, 1.3))),
        ("frugal", stairs((4, 1.0), (8, 1.3))),
        ("topk", stairs((4, 1.0), (1, 1.1), (8, 9.0))),
    ],
)
def test_two_requests_keep_their_law_where_a_cliff_is_crossed_or_not(
    name: str, curve: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = torch.tensor([[0.9, 0.7]]).double()
    load = {"steps_per_second": curve, "past_survival": PAST, "earlier_survival": earlier}
    monkeypatch.setattr(rows, "toy_load", lambda num: Load(num, **load))
    target = constant_target(0.7, 0.3)
    both = two_requests(target, built(target, 2, Still, Told, policy=name), ([0, 1], [1, 0]))
    assert both.error <= 1e-12
    assert both.lengths == (1, 2)


def test_a_budget_that_refused_tokens_settled_keeps_the_joint_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round's K comes from the first one's confidences, whatever was drafted, kept and refused."""
    target = constant_target(0.7, 0.3)
    parts = built(target, 2, Still, Told, policy="topk")
    curve, runs, budgets = 1 / torch.tensor([1.0, 1.0, 1.2, 1.5, 1.75, 2.0]).double(), [], set()

    class Kept(law._TwoRounds):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            runs.append(self)

    def remembering(parts: Parts, drafts: list[Drafted]) -> Tensor:
        if drafts[0] is runs[0].first.chosen.drafted:
            return rows.choose_lengths(parts, drafts)
        before = [one.block[one.entry] for one in runs]
        survival = [draft_survival(parts, one.first.chosen.drafted, torch.device("cpu")) for one in runs]
        found = torch.zeros((len(before[0]), len(before[1]), 2), dtype=torch.int64)
        for i, j in itertools.product(range(4), repeat=2):
            load = {
                "steps_per_second": curve,
                "earlier_survival": torch.stack([survival[0][i], survival[1][j]]),
            }
            monkeypatch.setattr(rows, "toy_load", lambda num, load=load: Load(num, **load))
            lengths = rows.choose_lengths(parts, drafts)
            budgets.add(int(lengths.sum(dim=-1).max()))
            found = torch.where(((before[0] == i)[:, None] & (before[1] == j))[..., None], lengths, found)
        return found

    monkeypatch.setattr(law, "_TwoRounds", Kept)
    monkeypatch.setattr(law, "choose_lengths", remembering)
    both = two_requests(target, parts, ([0, 1], [1, 0]))
    assert both.error <= 1e-12
    assert budgets == {2, 3, 4}


def test_a_budget_from_this_rounds_own_confidences_would_not_keep_the_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Live(TopKLength):
        name = "live"

        def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
            return super().lengths(survival, drafted, replace(load, earlier_survival=survival))

    curve = torch.tensor([1.0, 0.5, 0.45]).double()
    monkeypatch.setattr(rows, "toy_load", lambda num: Load(num, steps_per_second=curve))
    target = constant_target(0.7, 0.3)
    laws = one_request(target, built(target, 2, Still, Told, Live), [0, 1])
    first = laws.emitted.reshape(2, -1).sum(dim=1)
    assert first.tolist() == pytest.approx([0.85, 0.15])


def seeded(seed: int, num: int = 3, num_draft: int = 3) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    conditional = torch.rand(num, num_draft, generator=generator, dtype=torch.float64).sqrt()
    return conditional.cumprod(1), torch.randint(0, num_draft + 1, (num,), generator=generator), generator


def convex_curve(generator: torch.Generator, length: int) -> Tensor:
    slopes = torch.rand(length, generator=generator, dtype=torch.float64).square().sort().values
    return 1 / (0.2 + slopes.cumsum(0))


def throughput(lengths: Tensor, survival: Tensor, curve: Tensor) -> float:
    inside = torch.arange(survival.shape[1]) < lengths[:, None]
    return float((len(lengths) + survival[inside].sum()) * curve[int(lengths.sum()) + len(lengths) - 1])


@given(st.integers(0, 1_000_000))
def test_the_prefix_scheduler_is_brute_force_where_step_time_is_convex(seed: int) -> None:
    survival, drafted, generator = seeded(seed)
    curve = convex_curve(generator, 12)
    every = itertools.product(*(range(n + 1) for n in drafted.tolist()))
    best = max(throughput(torch.tensor(lengths), survival, curve) for lengths in every)
    found = throughput(prefix_lengths(survival, drafted, curve), survival, curve)
    assert found == pytest.approx(best, rel=1e-9)


@given(st.integers(0, 1_000_000))
def test_cliff_is_the_prefix_scheduler_where_step_time_is_convex(seed: int) -> None:
    survival, drafted, generator = seeded(seed, num=4)
    curve = convex_curve(generator, 16)
    load = Load(4, steps_per_second=curve, past_survival=PAST)
    expected = prefix_lengths(survival, drafted, curve)
    assert made(CliffLength).lengths(survival, drafted, load).tolist() == expected.tolist()


@given(st.integers(0, 1_000_000))
def test_cliff_is_jointly_non_anticipating_on_any_curve(seed: int) -> None:
    survival, drafted, generator = seeded(seed, num=4)
    conditional = torch.cat([survival[:, :1], survival[:, 1:] / survival[:, :-1]], dim=1)
    curve = torch.rand(16, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.5, 16)
    load = Load(4, steps_per_second=curve, past_survival=PAST)
    lengths = made(CliffLength).lengths(survival, drafted, load)
    unseen = torch.arange(3) > lengths[:, None]
    other = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    changed = torch.where(unseen, other, conditional).cumprod(1)
    assert made(CliffLength).lengths(changed, drafted, load).tolist() == lengths.tolist()


def test_corners_are_those_of_the_lower_hull_of_step_time() -> None:
    assert hull_corners(STAIRS).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 7, 11, 19]
    assert hull_corners(1 / torch.arange(1, 5).double()).all()
    assert hull_corners(1 / torch.tensor([1.0, 3.0, 2.0])).tolist() == [True, False, True]


def test_cliff_goes_over_a_cliff_on_what_is_expected_and_the_prefix_scheduler_does_not() -> None:
    survival = torch.tensor([0.99, 0.95, 0.9]).expand(4, -1).double()
    drafted = torch.full((4,), 3)
    load = Load(4, steps_per_second=STAIRS, past_survival=(0.97, 0.93, 0.9))
    policy = made(CliffLength)
    assert prefix_lengths(survival, drafted, STAIRS).sum() == 0
    assert policy.lengths(survival, drafted, load).sum() == 8
    assert policy.lengths(survival, drafted, Load(4, steps_per_second=STAIRS)).sum() == 8  # or it never would
    low = Load(4, steps_per_second=STAIRS, past_survival=(0.2, 0.02, 0.001))
    assert policy.lengths(survival, drafted, low).sum() == 0


def test_a_budget_is_searched_over_cliffs_and_scaled_to_the_requests_at_hand() -> None:
    speed = torch.tensor([1.0, 0.5, 0.45]).double()
    assert search_budget(torch.tensor([[0.8, 0.72]]).double(), 1, speed).tolist() == [2]
    assert search_budget(torch.tensor([[0.8, 0.0]]).double(), 1, speed).tolist() == [0]
    flat = torch.ones(9).double()
    assert search_budget(torch.tensor([[0.9, 0.0]]).double(), 4, flat).tolist() == [4]


def test_topk_takes_the_likeliest_of_its_own_round_and_all_before_there_is_a_past() -> None:
    survival = torch.tensor([[0.9, 0.2], [0.8, 0.7]]).double()
    drafted, curve = torch.tensor([2, 2]), 1 / torch.tensor([1.0, 1, 1, 1, 9, 9]).double()
    load = Load(2, steps_per_second=curve, earlier_survival=torch.tensor([[0.5, 0.4]]).double())
    assert made(TopKLength, 2).lengths(survival, drafted, load).tolist() == [1, 1]
    assert made(TopKLength, 2).lengths(survival, drafted, Load(2, steps_per_second=curve)).tolist() == [2, 2]


def frugal(cost: DraftCost, speeds: tuple[float, ...]) -> FrugalLength:
    policy = FrugalLength(FrugalConfig(explore_every=10), context(3))
    policy.curve = SpsCurve(verify_tokens=(1, 64), steps_per_s=speeds, draft=cost)
    return policy


def test_frugal_drafts_where_it_pays_and_skips_the_drafter_where_it_does_not() -> None:
    past = {"past_verified": (1.0, 1.0, 1.0), "past_accepted": PAST}
    assert frugal(DraftCost(seconds=0.1), (10.0, 9.0)).draft_length(Load(4, **past)) == 3
    assert frugal(DraftCost(seconds=0.5), (10.0, 9.0)).draft_length(Load(4, **past)) == 0
    assert frugal(DraftCost(seconds_per_position=0.081), (10.0, 9.9)).draft_length(Load(1, **past)) == 1
    assert frugal(DraftCost(seconds=0.5), (10.0, 9.0)).draft_length(Load(4)) == 3  # nothing is known yet
    assert made(FrugalLength).draft_length(Load(4, **past)) == 3  # without a curve nothing costs anything


def test_frugal_looks_again_after_a_while() -> None:
    past = {"past_verified": (1.0, 1.0, 1.0), "past_accepted": PAST}
    policy = frugal(DraftCost(seconds=0.5), (10.0, 9.0))
    drafts = [policy.draft_length(Load(4, **past, rounds_short=n)) for n in range(10)]
    assert drafts == [0] * 9 + [3]


@given(st.floats(0.5, 16), st.floats(0.1, 1))
def test_the_fall_is_the_one_that_brings_what_was_accepted(verified: float, share: float) -> None:
    fall = fall_of(verified, verified * share)
    assert float(brought(np.array([verified]), fall)[0]) == pytest.approx(verified * share, rel=1e-4)
