"""The prefix scheduler: the walk as it is defined, the best of all lengths on convex curves, and one decision
whoever takes it."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import CHECK_VARIABLE, backend_for, triton_schedule
from deepspec.kernels.schedule import UNIT, check_survival, prefix_lengths
from deepspec.kernels.triton_schedule import ScheduleWorkspace
from tests.kernels.rounds import DEVICE

THOROUGH = os.environ.get("DEEPSPEC_THOROUGH") == "1"
EIGHTHS = torch.arange(9, dtype=torch.float64) / 8


def survival(
    seed: int, num: int, num_draft: int, kind: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Survival that ties, nearly ties, ends in zeros or is any, and ragged draft lengths."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(num, num_draft, generator=generator, dtype=torch.float64)
    if kind == "ties":  # in eighths, so that products stay exact in every type
        drawn = EIGHTHS[(drawn * 9).long()]
        found = drawn.cummin(dim=1).values
    elif kind == "near":
        found = (0.5 + (drawn * 3).floor() * 2.0**-24).cummin(dim=1).values
    else:
        drawn = torch.where(drawn < 0.1, 0.0, drawn) if kind == "zeros" else drawn
        found = drawn.cumprod(dim=1)
    drafted = torch.randint(0, num_draft + 1, (num,), generator=generator)
    return found.to(dtype), drafted if kind != "any" else torch.full((num,), num_draft)


def speeds(seed: int, length: int, kind: str) -> Tensor:
    """Steps per second at B = 1..length."""
    length = max(length, 1)
    generator = torch.Generator().manual_seed(seed)
    if kind == "convex":
        slopes = torch.rand(length, generator=generator, dtype=torch.float64).sort().values
        return 100 / (1 + (0.4 * slopes).cumsum(dim=0))
    if kind == "dyadic":  # so that throughput before and after is often exactly the same
        return 2.0 ** -torch.randint(0, 3, (length,), generator=generator).cumsum(0).div(4).floor().double()
    jagged = 0.7 + 0.3 * torch.rand(length, generator=generator, dtype=torch.float64)
    return 100 * jagged.cumprod(dim=0)


def walked(values: Tensor, drafted: Tensor, curve: Tensor, prefill: int = 0) -> list[int]:
    """The walk in Python's integers and one rounding a product, in the order (-a, j, r)."""
    num = len(drafted)
    live = [
        (-max(1, int(a * UNIT + 0.5)), j, r)
        for r, row in enumerate(values.double().tolist())
        for j, a in enumerate(row[: int(drafted[r])])
        if a > 0
    ]
    lengths, total, tokens = [0] * num, num * UNIT, num + prefill
    speed = [*curve.tolist(), *[0.0] * (tokens + len(live))]
    for gain, _, r in sorted(live):
        if not float(total - gain) * speed[tokens] > float(total) * speed[tokens - 1]:
            break
        total, tokens = total - gain, tokens + 1
        lengths[r] += 1
    return lengths


KINDS = st.sampled_from(["any", "ties", "near", "zeros"])
CURVES = st.sampled_from(["convex", "dyadic", "jagged"])


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), KINDS, CURVES, st.integers(0, 4))
def test_it_is_the_walk(seed: int, num: int, num_draft: int, kind: str, curve: str, prefill: int) -> None:
    values, drafted = survival(seed, num, num_draft, kind)
    table = speeds(seed, num * (1 + num_draft) + prefill - seed % 3, curve)
    assert prefix_lengths(values, drafted, table, prefill).tolist() == walked(values, drafted, table, prefill)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), KINDS)
def test_on_a_convex_curve_no_lengths_at_all_do_better(
    seed: int, num: int, num_draft: int, kind: str
) -> None:
    values, drafted = survival(seed, num, num_draft, kind)
    table = speeds(seed, num * (1 + num_draft), "convex")

    def throughput(lengths: tuple[int, ...]) -> float:
        kept = sum(float(values[r, :length].sum()) for r, length in enumerate(lengths))
        return (num + kept) * float(table[num + sum(lengths) - 1])

    every = itertools.product(*(range(limit + 1) for limit in drafted.tolist()))
    best = max(throughput(lengths) for lengths in every)
    found = throughput((*prefix_lengths(values, drafted, table).tolist(),))
    assert found == pytest.approx(best, rel=1e-11)  # survival to the nearest 2**-40, a few terms


@given(st.integers(0, 10**6), KINDS, CURVES)
def test_nothing_is_verified_that_is_not_drafted_or_cannot_survive(seed: int, kind: str, curve: str) -> None:
    values, drafted = survival(seed, 4, 4, kind)
    lengths = prefix_lengths(values, drafted, speeds(seed, 20, curve))
    alive = ((values > 0) & (torch.arange(4) < drafted[:, None])).sum(dim=1)
    assert bool((lengths <= alive).all())


def test_of_equal_survival_the_shallower_position_goes_first_then_the_earlier_request() -> None:
    values = torch.full((2, 3), 0.5).double()
    for room, expected in enumerate([[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3]]):
        table = torch.ones(2 + room).double()  # past its end nothing is admitted
        assert prefix_lengths(values, torch.tensor([3, 3]), table).tolist() == expected


def test_a_token_that_leaves_throughput_as_it_is_ends_the_walk() -> None:
    one = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([2])
    assert prefix_lengths(*one, torch.tensor([8.0, 4.0, 8.0]).double()).tolist() == [0]
    assert prefix_lengths(*one, torch.tensor([8.0, 4.1, 8.0]).double()).tolist() == [2]


def test_prompt_tokens_and_requests_are_in_the_step_too() -> None:
    cliff = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0]).double()
    values = torch.full((1, 4), 0.9).double()
    for prefill, expected in enumerate([3, 2, 1, 0, 0, 0]):
        assert prefix_lengths(values, torch.tensor([4]), cliff, prefill).tolist() == [expected]
    assert prefix_lengths(values.expand(3, 4), torch.tensor([4] * 3), cliff).sum() == 1


def test_what_is_no_number_is_not_verified_and_debug_mode_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    values, drafted, table = torch.tensor([[0.9, float("nan")]]), torch.tensor([2]), torch.ones(5).double()
    assert prefix_lengths(values, drafted, table).tolist() == [1]
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    with pytest.raises(ConfigError, match="survival of request 0 at position 1 is nan after 0.8999"):
        backend_for(torch.device("cpu")).prefix_lengths(values, drafted, table, 0)
    good = values[:, :1]
    assert backend_for(torch.device("cpu")).prefix_lengths(good, drafted, table, 0).tolist() == [1]
    with pytest.raises(ConfigError, match=r"request 1 at position 1 is 0\.75 after 0\.5"):
        check_survival(torch.tensor([[0.5, 0.25], [0.5, 0.75]]))
    with pytest.raises(ConfigError, match=r"request 0 at position 0 is 1\.5; allowed is 0\.\.1"):
        check_survival(torch.tensor([[1.5]]))


def by_kernel(values: Tensor, drafted: Tensor, table: Tensor, prefill: int = 0) -> list[int]:
    """Lengths of the Triton kernels, whose workspace was filled with nonsense first."""
    room = ScheduleWorkspace.allocate(*values.shape, DEVICE)
    for left in (room.keys, room.losses, room.lengths):
        left.fill_(-1)
    here = (tensor.to(DEVICE) for tensor in (values, drafted, table))
    return triton_schedule.prefix_lengths(*here, prefill, workspace=room).tolist()


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 7),
    KINDS,
    CURVES,
    st.integers(0, 3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_kernels_decide_exactly_as_plain_torch(
    seed: int, num: int, num_draft: int, kind: str, curve: str, prefill: int, dtype: torch.dtype
) -> None:
    values, drafted = survival(seed, num, num_draft, kind, dtype)
    table = speeds(seed, num * (1 + num_draft) + prefill - seed % 5, curve)
    expected = prefix_lengths(values, drafted, table, prefill).tolist()
    assert by_kernel(values, drafted, table, prefill) == expected
    assert by_kernel(values.T.contiguous().T, drafted, table, prefill) == expected


@pytest.mark.thorough
@pytest.mark.parametrize(("num", "num_draft"), [(64, 7), *([(256, 16), (300, 15)] if THOROUGH else [])])
def test_the_kernels_decide_so_over_many_programs(num: int, num_draft: int) -> None:
    values, drafted = survival(1, num, num_draft, "near", torch.float32)
    table = 100 / (num + torch.arange(num * (1 + num_draft)).double() ** 0.8)
    assert by_kernel(values, drafted, table) == prefix_lengths(values, drafted, table).tolist()


def test_nothing_drafted_and_nobody_there() -> None:
    table = torch.ones(9).double()
    for values in (torch.zeros(3, 0), torch.zeros(0, 4)):
        drafted = torch.zeros(len(values), dtype=torch.int64)
        assert prefix_lengths(values, drafted, table).tolist() == [0] * len(values)
        assert by_kernel(values, drafted, table) == [0] * len(values)


def test_a_workspace_of_another_size_is_refused() -> None:
    room = ScheduleWorkspace.allocate(3, 4, DEVICE)
    drafted = torch.full((2,), 4, device=DEVICE)
    with pytest.raises(ConfigError, match="2 requests of 4 tokens ask for 256, 1 and 2: allocate one"):
        triton_schedule.prefix_lengths(
            torch.ones(2, 4, device=DEVICE), drafted, torch.ones(9, device=DEVICE).double(), workspace=room
        )
