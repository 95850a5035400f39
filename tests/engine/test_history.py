"""What the engine remembers of past rounds: rates of what was tried, nothing of what was not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepspec.engine.history import RoundHistory


def test_there_is_no_past_before_something_was_verified() -> None:
    history = RoundHistory(3)
    assert history.survival() == ()
    history.observe(np.array([0, 0]), np.array([0, 0]), 3)
    assert history.survival() == ()
    assert history.load(2, 5).past_verified == (0.0, 0.0, 0.0)


def test_a_position_counts_only_where_all_before_it_was_accepted_and_it_was_verified() -> None:
    history = RoundHistory(2)
    # Position 1 tried by three and passed by two, position 2 tried by one of them (the other stopped at 1).
    history.observe(np.array([1, 1, 0]), np.array([2, 1, 2]), 2)
    first = 2 / 3
    assert history.survival() == pytest.approx((first, first * (0 + first) / 2))
    assert history.load(3, 0).past_verified == pytest.approx((1.0, 2 / 3))
    assert history.load(3, 0).past_accepted == pytest.approx((2 / 3, 0.0))


def test_short_drafts_count_towards_survival_and_not_towards_what_a_full_draft_brings() -> None:
    history = RoundHistory(3)
    history.observe(np.array([3]), np.array([3]), 3)
    for _ in range(4):
        history.observe(np.array([0]), np.array([1]), 1)
    load = history.load(1, 0)
    assert load.rounds_short == 4
    assert load.past_accepted == pytest.approx((1.0, 1.0, 1.0))
    assert load.past_survival[0] < 0.25


def test_old_rounds_fade() -> None:
    history = RoundHistory(1)
    for passed in (1, 0):
        for _ in range(300):
            history.observe(np.array([passed]), np.array([1]), 1)
    assert history.survival()[0] < 0.01


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_survival_never_increases_and_lies_in_0_to_1(rounds: list[tuple[int, int]]) -> None:
    history = RoundHistory(4)
    for one, other in rounds:
        history.observe(np.array([min(one, other)]), np.array([max(one, other)]), 4)
    survival = (1.0, *history.survival())
    assert all(1 >= before >= after >= 0 for before, after in pairwise(survival))
