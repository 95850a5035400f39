"""What calibrators are fitted to: rounds with the confidence of each draft position and how it went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationRounds:
    """M rounds of G positions.

    Attributes:
        confidence: logits ``[M, G]``.
        looked: bool ``[M, G]``, whether a verdict on position k given the positions before it was seen.
        kept: ``[M, G]`` in 0..1, whether it was accepted, or the chance that it had; read where looked at.
        prefix: ``[M, G]`` in 0..1, the same of all positions up to k together.
        closed: bool ``[M, G]``, whether ``prefix`` is known: k was verified, or a position before it refused.
    """

    confidence: Floats
    looked: NDArray[np.bool_]
    kept: Floats
    prefix: Floats
    closed: NDArray[np.bool_]

    @classmethod
    def from_counts(
        cls, confidence: Floats, verified: NDArray[np.int64], accepted: NDArray[np.int64]
    ) -> CalibrationRounds:
        """From verdicts: ``verified`` and ``accepted`` tokens of each round, int64 ``[M]``.

        Position k is looked at when it was verified and the k-1 before it were accepted; whatever else a
        policy left out says nothing of it, so nothing is made of it.
        """
        steps = np.arange(1, confidence.shape[1] + 1)
        kept = (accepted[:, None] >= steps).astype(np.float64)
        reached, shown = accepted[:, None] >= steps - 1, verified[:, None] >= steps
        refused = (accepted < verified)[:, None]
        return cls(confidence, reached & shown, kept, kept, shown | refused)

    @classmethod
    def from_chances(cls, confidence: Floats, chances: Floats) -> CalibrationRounds:
        """From the analytic acceptance ``[M, G]`` of verified rows, NaN where a row was not verified.

        A row's chance is known whether or not the draft came so far, so all verified positions count.
        """
        looked = ~np.isnan(chances)
        kept = np.where(looked, chances, 0.0)
        return cls(confidence, looked, kept, kept.cumprod(axis=1), looked)

    def __len__(self) -> int:
        return len(self.confidence)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> CalibrationRounds:
        return CalibrationRounds(
            self.confidence[rows], self.looked[rows], self.kept[rows], self.prefix[rows], self.closed[rows]
        )

    @property
    def draft_length(self) -> int:
        """G."""
        return self.confidence.shape[1]

    def conditional(self) -> Floats:
        """The confidences taken at their word, as chances ``[M, G]``."""
        return sigmoid(self.confidence)


def sigmoid(logits: Floats) -> Floats:
    """Chances of logits, without overflow."""
    chances: Floats = 0.5 * (1 + np.tanh(logits / 2))
    return chances
