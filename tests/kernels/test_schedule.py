"""The prefix scheduler: brute force where steps are convex, ties, and Triton's decisions, which are equal."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import schedule, triton_schedule
from tests.kernels.rounds import DEVICE

CURVE = torch.tensor([100.0, 90.0, 82.0, 74.0, 65.0, 50.0, 42.0, 36.0, 30.0, 25.0, 20.0, 16.0]).double()


def random_survival(seed: int, num: int, length: int, *, ties: bool) -> Tensor:
    drawn = torch.rand(num, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (((drawn * 4).ceil() / 4) if ties else drawn).cumprod(dim=1)


def throughput(survival: Tensor, lengths: tuple[int, ...], curve: Tensor, prefill: int) -> float:
    gained = sum(float(row[:length].sum()) for row, length in zip(survival, lengths, strict=True))
    return (len(lengths) + gained) * float(curve[len(lengths) + sum(lengths) + prefill - 1])


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_the_walk_finds_the_best_lengths_of_all_where_a_steps_time_is_convex(
    seed: int, num: int, length: int, prefill: int
) -> None:
    survival = random_survival(seed, num, length, ties=seed % 2 == 0)
    steps = torch.rand(16, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    time = 1 + steps.sort().values.cumsum(dim=0)  # its increments rise
    drafted = torch.full((num,), length)
    found = schedule.prefix_lengths(survival, drafted, 1 / time, prefill)
    every = itertools.product(range(length + 1), repeat=num)
    best = max(throughput(survival, lengths, 1 / time, prefill) for lengths in every)
    reached = throughput(survival, tuple(found.tolist()), 1 / time, prefill)
    assert reached == pytest.approx(best, rel=1e-9)  # survival is counted in units of 2^-40


def test_the_worked_counterexample_admits_the_first_token_alone() -> None:
    curve = torch.tensor([1.0, 0.5, 0.45], dtype=torch.float64)
    for second in (0.9, 0.0):  # the second confidence knows the first token, and is not looked at
        survival = torch.tensor([[0.8, 0.8 * second]], dtype=torch.float64)
        assert schedule.prefix_lengths(survival, torch.tensor([2]), curve).tolist() == [0]


def test_of_equal_survival_the_shallower_goes_first_and_none_follows_a_gap() -> None:
    curve = torch.tensor([10.0, 9.0, 8.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    survival = torch.full((2, 2), 0.5, dtype=torch.float64)
    assert schedule.prefix_lengths(survival, torch.tensor([2, 2]), curve).tolist() == [1, 0]


def test_tokens_that_cannot_survive_and_steps_past_the_curve_are_left_out() -> None:
    survival = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    flat = torch.ones(6, dtype=torch.float64)
    assert schedule.prefix_lengths(survival, torch.tensor([2, 2]), flat).tolist() == [1, 2]
    assert schedule.prefix_lengths(survival, torch.tensor([2, 2]), flat[:3]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("num", "length", "dtype"), [(1, 1, "float64"), (5, 3, "float32"), (40, 7, "float64")]
)
def test_tritons_decisions_are_the_reference_s(num: int, length: int, dtype: str) -> None:
    for seed in range(6):
        survival = random_survival(seed, num, length, ties=seed % 2 == 0).to(DEVICE, getattr(torch, dtype))
        generator = torch.Generator().manual_seed(seed)
        drafted = torch.randint(0, length + 1, (num,), generator=generator).to(DEVICE)
        time = 1 + 0.3 * torch.rand(num * (length + 1) + 3, generator=generator, dtype=torch.float64).cumsum(
            0
        )
        curve = (1 / time).to(DEVICE)
        given = (survival, drafted, curve, seed % 3)
        wanted = schedule.prefix_lengths(*given)
        room = triton_schedule.ScheduleWorkspace.allocate(num, length, DEVICE)
        for part in (room.keys, room.losses, room.lengths):
            part.fill_(-1)
        assert torch.equal(triton_schedule.prefix_lengths(*given, workspace=room), wanted)


def test_a_workspace_of_another_size_is_refused() -> None:
    room = triton_schedule.ScheduleWorkspace.allocate(2, 2, DEVICE)
    survival, drafted = torch.ones(9, 40, device=DEVICE), torch.ones(9, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ConfigError, match="allocate one of its size"):
        triton_schedule.prefix_lengths(survival, drafted, CURVE.to(DEVICE), workspace=room)


@pytest.mark.parametrize(
    ("wrong", "words"), [(1.5, "is 1.5"), (float("nan"), "is nan"), (0.75, "is 0.75 after 0.5")]
)
def test_what_is_no_survival_is_named_in_debug_mode(wrong: float, words: str) -> None:
    survival = torch.tensor([[1.0, 0.5], [0.5, 0.25]])
    survival[1, 1] = wrong
    run = schedule.checked(schedule.prefix_lengths)
    with pytest.raises(ConfigError, match=f"request 1 at position 1 {words}"):
        run(survival, torch.tensor([2, 2]), CURVE)
