"""Rounds whose true chances are known: logits are the true ones times a scale for each position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepspec.rounds import CalibrationRounds


def made_rounds(
    scales: Sequence[float], count: int, *, seed: int = 0, shift: float = 0.0, length: int | None = None
) -> CalibrationRounds:
    """``count`` rounds; position k says ``scales[k]`` times the log-odds that it has, plus ``shift``.

    ``length`` is how many positions are verified, all when None.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(0.8, 1.2, (count, len(scales)))
    kept = rng.random(truth.shape) < 1 / (1 + np.exp(-truth))
    verified = np.full(count, len(scales) if length is None else length)
    accepted = np.minimum(kept.cumprod(axis=1).sum(axis=1), verified)
    return CalibrationRounds.from_counts(truth * np.asarray(scales) + shift, verified, accepted)
