"""The fitted acceptance model: the published lengths come out, and confidences are calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from deepspec.errors import ConfigError
from deepspec.simulate.acceptance import (
    PUBLISHED_LENGTHS,
    FittedAcceptance,
    Spread,
    fit_level,
)

SLOTS = np.arange(4000)


@pytest.mark.parametrize("name", PUBLISHED_LENGTHS)
def test_fixed_drafts_of_seven_have_the_published_accepted_length(name: str) -> None:
    length = PUBLISHED_LENGTHS[name]
    model = FittedAcceptance([length], len(SLOTS), 7, seed=0)
    model.start(SLOTS, np.zeros_like(SLOTS))
    found = np.mean([1 + model.round(SLOTS).accepted.mean() for _ in range(20)])
    assert found == pytest.approx(length, abs=0.1)  # 4,000 requests of a deviation of about 1.2


def test_confidences_are_calibrated_at_every_position() -> None:
    model = FittedAcceptance([4.0], len(SLOTS), 4, seed=1)
    model.start(SLOTS, np.zeros_like(SLOTS))
    drawn = model.round(SLOTS)
    survival = drawn.conditional.cumprod(axis=1)
    for j in range(4):
        assert (drawn.accepted > j).mean() == pytest.approx(survival[:, j].mean(), abs=0.03)


def test_a_request_stays_as_hard_as_it_was_and_others_differ() -> None:
    model = FittedAcceptance([4.0], len(SLOTS), 7, seed=2)
    model.start(SLOTS, np.zeros_like(SLOTS))
    one, other = (model.round(SLOTS).conditional.mean(axis=1) for _ in range(2))
    assert 0.2 < np.corrcoef(one, other)[0, 1] < 0.9


@pytest.mark.parametrize("length", [1.0, 8.0, float("nan")])
def test_an_accepted_length_that_no_draft_can_have_is_refused(length: float) -> None:
    with pytest.raises(ConfigError, match="accepted length"):
        fit_level(length, Spread())


def test_the_same_request_is_served_whatever_was_served_before() -> None:
    one, other = (FittedAcceptance([4.0], 2, 7, seed=3) for _ in range(2))
    for model, rounds in ((one, 3), (other, 8)):
        model.start(np.array([0]), np.array([0]))
        for _ in range(rounds):
            model.round(np.array([0]))
        model.start(np.array([1]), np.array([0]))
    for _ in range(3):
        assert (
            one.round(np.array([1])).conditional.tolist() == other.round(np.array([1])).conditional.tolist()
        )
