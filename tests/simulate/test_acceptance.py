"""Acceptance models: the published lengths come out, confidences are calibrated, recordings are resampled."""

from __future__ import annotations

import numpy as np
import pytest

from deepspec.errors import ConfigError
from deepspec.simulate.acceptance import (
    PUBLISHED_LENGTHS,
    FittedAcceptance,
    RecordedAcceptance,
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


def test_recorded_rounds_are_resampled_with_what_became_of_them() -> None:
    confidences = np.array([[0.9, 0.5], [0.1, 0.2]])
    model = RecordedAcceptance(confidences, np.array([2, 0]), seed=0)
    drawn = model.round(np.arange(100))
    assert ((drawn.conditional[:, 0] == 0.9) == (drawn.accepted == 2)).all()
    assert 20 < (drawn.accepted == 2).sum() < 80


@pytest.mark.parametrize(
    ("confidences", "accepted", "complaint"),
    [
        ([[0.9, 1.5]], [1], "recorded round 0"),
        ([[0.9, float("nan")]], [1], "recorded round 0"),
        ([[0.9, 0.5]], [3], "recorded round 0"),
        ([[0.9, 0.5]], [1, 1], "give .N, G. and .N."),
    ],
)
def test_recordings_out_of_range_are_refused(confidences: object, accepted: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        RecordedAcceptance(np.array(confidences), np.array(accepted), seed=0)
