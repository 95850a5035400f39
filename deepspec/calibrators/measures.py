"""How well predicted chances fit what happened: ECE with its noise floor, AUC, log loss, Brier score.

ECE is Naeini 2015's, over equal-width bins. A perfectly calibrated predictor has an ECE above zero on finite
data; :func:`calibration_floor` says how much, and no ECE means anything without it.
"""

from __future__ import annotations

import numpy as np

from deepspec.rounds import Floats

NUM_BINS = 15


def calibration_error(predicted: Floats, happened: Floats) -> float:
    """Expected calibration error of chances ``[M]`` against outcomes ``[M]`` in 0..1, as a fraction."""
    return float(_errors(predicted, happened[None])[0])


def calibration_floor(predicted: Floats, *, repeats: int = 200, seed: int = 0) -> float:
    """The mean ECE when ``predicted`` are the true chances, by drawing outcomes from them."""
    draws = np.random.default_rng(seed).random((repeats, len(predicted)))
    return float(_errors(predicted, (draws < predicted).astype(np.float64)).mean())


def _errors(predicted: Floats, happened: Floats) -> Floats:
    """ECE of each row of outcomes ``[N, M]``: the bins' gaps, weighted by how many are in a bin."""
    if not len(predicted):
        return np.full(len(happened), np.nan)
    bins = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    member = np.eye(NUM_BINS)[bins]
    gaps: Floats = np.abs((happened - predicted) @ member).sum(axis=1) / len(predicted)
    return gaps


def area_under_curve(score: Floats, happened: Floats) -> float | None:
    """The chance that one that happened has the higher score, ties half; None when all are of one kind."""
    positive = happened > 0.5
    num, total = int(positive.sum()), len(positive)
    if num in (0, total):
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2
    above = ranks[place][positive].sum() - num * (num + 1) / 2
    return float(above / (num * (total - num)))


def brier_score(predicted: Floats, happened: Floats) -> float:
    """Mean squared error of chances."""
    return float(((predicted - happened) ** 2).mean())


def log_loss(predicted: Floats, happened: Floats) -> float:
    """Mean negative log-likelihood; outcomes may be chances, too."""
    tiny = 1e-12
    likelihood = happened * np.log(predicted + tiny) + (1 - happened) * np.log1p(tiny - predicted)
    return float(-likelihood.mean())
