"""Which drafts are accepted in a simulation, and a model of it, fitted to published accepted lengths.

The model: the conditional acceptance of a request's position is logistic(level + request + round +
position), normal terms, of which the round's is autocorrelated. The level of each class of text is fitted so
that fixed drafts of 7 tokens have the published accepted length. Confidences are the conditional acceptances,
so they are calibrated; what a head does not know of a token's chance makes no difference to a calibrated
confidence, being part of the draw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deepspec.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Accepted lengths of DSpark on Qwen3-4B at temperature 1, 7 drafted tokens, token rule (2607.05147): means
#: of GSM8K, MATH and AIME25; of MBPP, HumanEval and LiveCodeBench; of MT-Bench, Alpaca and Arena-Hard.
PUBLISHED_LENGTHS = {"math": 5.57, "code": 5.12, "chat": 3.49}
FITTED_DRAFT_LENGTH = 7
#: Rounds of the table of noise: some hundred times as many as a request has.
_NOISE_ROUNDS = 2**16


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the logit's terms, and how much of a round's a request keeps to the next.

    Chosen for the published AUC of prefix survival, .81 to .91 by position: these give .82 to .88.
    """

    request: float = 0.7
    round: float = 0.8
    position: float = 1.5
    kept: float = 0.8


@dataclass(frozen=True)
class DraftedRounds:
    """A round of R requests.

    Attributes:
        conditional: confidences ``[R, G]`` in 0..1. accepted: int64 ``[R]`` in 0..G, if all were verified.
    """

    conditional: Floats
    accepted: Ints


class AcceptanceModel(ABC):
    """What becomes of drafts; one object belongs to one simulation."""

    @abstractmethod
    def start(self, slots: Ints, classes: Ints) -> None:
        """New requests, of these classes of text, in these slots."""

    @abstractmethod
    def round(self, slots: Ints) -> DraftedRounds:
        """The next round of the requests in ``slots [R]``, as if all G tokens were drafted."""


def fit_level(accepted_length: float, spread: Spread, draft_length: int = FITTED_DRAFT_LENGTH) -> float:
    """The level at which fixed drafts have this accepted length; raises ConfigError for none."""
    if not 1 < accepted_length < draft_length + 1:
        raise ConfigError(
            f"accepted length {accepted_length} of {draft_length} drafted tokens; allowed is "
            f"between 1 and {draft_length + 1}"
        )
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        above = mean_length(middle, spread, draft_length) > accepted_length
        low, high = (low, middle) if above else (middle, high)
    return low


@cache
def _normal_points() -> tuple[Floats, Floats]:
    """Points and weights of a standard normal's quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    return points, weights / weights.sum()


def mean_length(level: float, spread: Spread, draft_length: int) -> float:
    """Accepted length of fixed drafts, by quadrature: within a round positions are independent."""
    points, weights = _normal_points()
    shared = level + points * np.hypot(spread.request, spread.round)
    rates = logistic(shared[:, None] + spread.position * points) @ weights
    return float(weights @ (rates[:, None] ** np.arange(draft_length + 1)).sum(axis=1))


class FittedAcceptance(AcceptanceModel):
    """The logistic model for classes of text of these accepted lengths.

    The n-th request to start is the same one for the same seed, round for round, whatever a policy does:
    policies that are compared serve the same text, so that they differ by less than two texts do. Its rounds
    read one table of noise from a place of their own on.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        num_slots: int,
        draft_length: int,
        seed: int,
        spread: Spread | None = None,
    ) -> None:
        self._spread = spread = spread or Spread()
        self._levels = np.array([fit_level(length, spread) for length in lengths])
        self._requests, self._places, noise = (np.random.default_rng([seed, which]) for which in (4, 5, 6))
        self._shifts = np.sqrt(1 - spread.kept**2) * noise.standard_normal(_NOISE_ROUNDS)
        self._positions = spread.position * noise.standard_normal((_NOISE_ROUNDS, draft_length))
        # A position passes where the terms that it shares with its round are above this; all before it, too.
        needed = noise.logistic(size=self._positions.shape) - self._positions
        self._needed = np.maximum.accumulate(needed, axis=1)
        self._base, self._round = np.zeros(num_slots), np.zeros(num_slots)
        self._place = np.zeros(num_slots, np.int64)

    def start(self, slots: Ints, classes: Ints) -> None:
        """See :class:`AcceptanceModel`."""
        drawn = self._requests.standard_normal((len(slots), 2))
        self._base[slots] = self._levels[classes] + self._spread.request * drawn[:, 0]
        self._round[slots] = drawn[:, 1]
        self._place[slots] = (self._places.random(len(slots)) * _NOISE_ROUNDS).astype(np.int64)

    def round(self, slots: Ints) -> DraftedRounds:
        """See :class:`AcceptanceModel`."""
        place = self._place[slots] % _NOISE_ROUNDS
        self._place[slots] += 1
        self._round[slots] = here = self._spread.kept * self._round[slots] + self._shifts[place]
        shared = (self._base[slots] + self._spread.round * here)[:, None]
        accepted = (self._needed[place] < shared).sum(axis=1)
        return DraftedRounds(logistic(shared + self._positions[place]), accepted)


def logistic(logits: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-logits))
