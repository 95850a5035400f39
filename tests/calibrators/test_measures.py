"""Measures of calibration, against values worked out by hand and against what they should tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from deepspec.calibrators.measures import (
    area_under_curve,
    brier_score,
    calibration_error,
    calibration_floor,
    log_loss,
)


def test_ece_is_the_gap_of_each_bin_weighted_by_its_share() -> None:
    predicted = np.array([0.05, 0.05, 0.9, 0.9, 0.9])
    happened = np.array([0.0, 1.0, 1.0, 1.0, 0.0])
    by_hand = 2 / 5 * abs(0.5 - 0.05) + 3 / 5 * abs(2 / 3 - 0.9)
    assert calibration_error(predicted, happened) == pytest.approx(by_hand, abs=1e-12)


def test_a_certain_prediction_falls_into_the_last_bin() -> None:
    assert calibration_error(np.ones(4), np.ones(4)) == 0.0


def test_the_floor_is_the_error_of_true_chances_and_falls_with_the_number_of_rounds() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.random(500), rng.random(8000)
    drawn = np.mean([calibration_error(small, 1.0 * (rng.random(500) < small)) for _ in range(200)])
    assert calibration_floor(small) == pytest.approx(drawn, rel=0.05)
    assert calibration_floor(large) < 0.35 * calibration_floor(small)


def test_auc_counts_ties_half_and_needs_both_kinds() -> None:
    score, happened = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert area_under_curve(score, happened) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert area_under_curve(score, np.ones(4)) is None
    assert area_under_curve(score, np.zeros(4)) is None


def test_brier_and_log_loss_by_hand() -> None:
    predicted, happened = np.array([0.25, 0.5]), np.array([0.0, 1.0])
    assert brier_score(predicted, happened) == pytest.approx((0.0625 + 0.25) / 2)
    assert log_loss(predicted, happened) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)
    assert np.isfinite(log_loss(np.array([1.0]), np.array([0.0])))
