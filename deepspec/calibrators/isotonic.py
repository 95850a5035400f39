"""Isotonic calibration: a piecewise linear, never falling map of each position's confidence.

Pooling adjacent violators gives the best never falling steps; a few of their middles, joined by lines, keep
the order of confidences where the steps would make ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor, searchsorted, tensor

from deepspec.errors import ConfigError
from deepspec.interfaces import BuildContext, Calibrator, PartConfig
from deepspec.rounds import CalibrationRounds, Floats

MOST_KNOTS = 32
#: A curve's ends; beyond them a confidence counts as the end does.
_WIDEST = 16.0
#: Steps nearer to 0 or 1 than this are pulled in, since no chance is certain.
_EDGE = 1e-3
#: Over the whole width, so that two confidences never become one.
_RISE = 1e-6

Knot = tuple[float, Annotated[float, Field(gt=0, lt=1)]]


class IsotonicConfig(PartConfig):
    """Options of isotonic calibration."""

    knots: tuple[tuple[Knot, ...], ...] | None = Field(
        default=None,
        description="for each position (confidence logit, chance), both rising, as a fit finds them; "
        "null takes confidences at their word",
    )


class IsotonicCalibrator(Calibrator):
    """One curve through a few knots for each position."""

    name = "isotonic"
    recordable = True
    Config = IsotonicConfig
    config: IsotonicConfig

    def __init__(self, config: IsotonicConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        if config.knots is None:
            self._logits = self._chances = None
            return
        if len(config.knots) != context.draft_length:
            raise ConfigError(
                f"calibrator 'isotonic' has knots of {len(config.knots)} positions and draft_length is "
                f"{context.draft_length}; give those of each, or fit them again: deepspec calibrate RUN"
            )
        curves = [_extended(k, knots) for k, knots in enumerate(config.knots, start=1)]
        most = max(len(curve) for curve in curves)
        padded = tensor([curve + [curve[-1]] * (most - len(curve)) for curve in curves])
        self._logits, self._chances = padded[..., 0].contiguous(), padded[..., 1].contiguous()

    def conditional(self, confidence: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Calibrator`."""
        if self._logits is None or self._chances is None:
            return confidence.sigmoid()
        self._logits, self._chances = self._logits.to(confidence), self._chances.to(confidence)
        length = confidence.shape[1]
        logits, chances = self._logits[:length], self._chances[:length]
        columns = confidence.T.clamp(-_WIDEST, _WIDEST).contiguous()
        right = searchsorted(logits, columns).clamp(1, logits.shape[1] - 1)
        left = right - 1
        low, high = logits.gather(1, left), logits.gather(1, right)
        share = ((columns - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        start, end = chances.gather(1, left), chances.gather(1, right)
        return (start + share * (end - start)).T

    def fit(self, rounds: CalibrationRounds) -> Mapping[str, object]:
        """The knots of the best never falling map of each position's confidences."""
        found = []
        for k in range(rounds.draft_length):
            looked = rounds.looked[:, k]
            found.append(isotonic_knots(rounds.confidence[looked, k], rounds.kept[looked, k]))
        return {"knots": found}


def isotonic_knots(logits: Floats, happened: Floats) -> list[tuple[float, float]]:
    """(logit, chance), both rising: middles of the pooled steps, at most ``MOST_KNOTS``."""
    if not len(logits):
        return [(0.0, 0.5)]
    order = np.argsort(logits, kind="stable")
    # Few groups of like size first: a step of a handful of rounds is noise.
    groups = np.array_split(order, min(MOST_KNOTS, max(1, len(order) // 16)))
    steps: list[tuple[float, float, int]] = []  # mean logit, mean outcome, rounds
    for group in groups:
        steps.append((float(logits[group].mean()), float(happened[group].mean()), len(group)))
        while len(steps) > 1 and steps[-1][1] <= steps[-2][1]:
            last, before = steps.pop(), steps.pop()
            steps.append(_pooled(before, last))
    knots = [(round(x, 5), round(min(max(y, _EDGE), 1 - _EDGE), 5)) for x, y, _ in steps]
    return [knot for i, knot in enumerate(knots) if i == 0 or (knot[0] > knots[i - 1][0])]


def _pooled(a: tuple[float, float, int], b: tuple[float, float, int]) -> tuple[float, float, int]:
    count = a[2] + b[2]
    return ((a[0] * a[2] + b[0] * b[2]) / count, (a[1] * a[2] + b[1] * b[2]) / count, count)


def _extended(position: int, knots: tuple[Knot, ...]) -> list[list[float]]:
    """The knots with an end on either side; raises ConfigError unless logits and chances never fall."""
    inner = [list(knot) for knot in knots]
    if not inner or any(b[0] <= a[0] or b[1] < a[1] for a, b in pairwise(inner)):
        raise ConfigError(
            f"calibrator 'isotonic': the knots of position {position} must be at least one, with rising "
            "logits and chances that never fall; fit them again: deepspec calibrate RUN"
        )
    rise = [_RISE * (x + _WIDEST) for x, _ in inner]
    inner = [[x, min(y + up, 1 - 1e-6)] for (x, y), up in zip(inner, rise, strict=True)]
    low, high = inner[0], inner[-1]
    first = [[-_WIDEST, low[1] * (1 - _EDGE)]] if low[0] > -_WIDEST else []
    last = [[_WIDEST, high[1] + (1 - high[1]) * _EDGE]] if high[0] < _WIDEST else []
    return [*first, *inner, *last]
