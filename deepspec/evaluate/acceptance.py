"""Accepted length and acceptance per position, from the rounds of some prompts, without bias.

A round of a request verified l tokens and accepted a of them. What it says of position k (1-based):

- It was **looked at** when l >= k and the first k - 1 were accepted. A drafter that proposes less, a policy
  that verifies less, and a rejection end what the round says; none counts as a failure of later positions.
  A round without a proposal counts for the accepted length alone.
- A **stop token** censors: when it is the s-th token of the round, positions after s continue a text that
  has ended and are dropped, positions up to s stay, the accepted stop token itself included. Whether
  position k counts is then settled by the tokens before k alone, so the rates are not biased. (Dropping
  whole rounds that end in a stop token is biased down, counting what follows a stop token measures text
  that is never shown, and taking tokens after it for rejections is biased down.)
- The **maximum** censors nothing: the verdict beyond it was reached all the same.

Conditional acceptance is accepted / looked at. Survival is its running product (Kaplan-Meier), since
counting survivors among all rounds would treat censored ones as failures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepspec.types import RequestRound

NUM_RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PositionRates:
    """Acceptance per draft position, first to last.

    Attributes:
        observed: rounds that looked at the position.
        accepted: those of them that accepted it.
    """

    observed: tuple[int, ...]
    accepted: tuple[int, ...]

    @property
    def conditional(self) -> tuple[float | None, ...]:
        """P(accepted | the positions before were), None where nothing was looked at."""
        pairs = zip(self.accepted, self.observed, strict=True)
        return tuple(a / n if n else None for a, n in pairs)

    @property
    def survival(self) -> tuple[float | None, ...]:
        """P(accepted up to and including the position), None from the first position without observations."""
        rates: list[float | None] = []
        product: float | None = 1.0
        for rate in self.conditional:
            product = None if product is None or rate is None else product * rate
            rates.append(product)
        return tuple(rates)


@dataclass(frozen=True)
class Acceptance:
    """What some prompts' rounds say.

    Attributes:
        accepted_length: tokens gained a round, bonus token included; None without any round.
        rates: per draft position.
        num_prompts, num_rounds: how many there were; prompts without a round are counted.
    """

    accepted_length: Interval | None
    rates: PositionRates
    num_prompts: int
    num_rounds: int


class PromptLength(NamedTuple):
    """What one prompt's decoding came to: tokens gained, bonus tokens included, in so many rounds."""

    gained: int
    rounds: int


def prompt_lengths(prompts: Sequence[Sequence[RequestRound]]) -> list[PromptLength]:
    """The two sums of each prompt's rounds, of which accepted lengths are made."""
    return [PromptLength(sum(map(tokens_gained, rounds)), len(rounds)) for rounds in prompts]


def measure_acceptance(
    prompts: Sequence[Sequence[RequestRound]], *, draft_length: int, seed: int = 0
) -> Acceptance:
    """Statistics of the rounds of each prompt; the bootstrap resamples prompts, not rounds."""
    gained, counts = np.array(prompt_lengths(prompts), dtype=np.float64).reshape(-1, 2).T
    return Acceptance(
        accepted_length=bootstrap_ratio(gained, counts, seed=seed),
        rates=position_rates(chain.from_iterable(prompts), draft_length),
        num_prompts=len(prompts),
        num_rounds=int(counts.sum()),
    )


def tokens_gained(round_: RequestRound) -> int:
    """What a round was worth: up to a stop token, but past the maximum.

    Counting the last round in full makes total tokens / total rounds right (Wald's identity): a request
    stops at the round that reaches its maximum, and cutting that one short would bias the ratio down.
    """
    return round_.emitted if round_.stopped else round_.accepted + 1


def position_rates(rounds: Iterable[RequestRound], draft_length: int) -> PositionRates:
    """Count looks and acceptances at positions 1..draft_length."""
    looked = np.zeros(draft_length + 2, dtype=np.int64)  # [i]: rounds that looked at positions 1..i
    accepted = np.zeros(draft_length + 2, dtype=np.int64)
    for round_ in rounds:
        last = round_.emitted if round_.stopped else draft_length
        looked[min(round_.verified, round_.accepted + 1, last)] += 1
        accepted[min(round_.accepted, last)] += 1
    at_least = [np.flip(np.cumsum(np.flip(column)))[1 : draft_length + 1] for column in (looked, accepted)]
    return PositionRates(tuple(at_least[0].tolist()), tuple(at_least[1].tolist()))


def bootstrap_ratio(
    gained: NDArray[np.float64], counts: NDArray[np.float64], *, seed: int, resamples: int = NUM_RESAMPLES
) -> Interval | None:
    """sum(gained) / sum(counts) with the 95 % percentile interval over resampled prompts."""
    kept = counts > 0
    pairs = np.stack([gained[kept], counts[kept]], axis=1)
    if len(pairs) == 0:
        return None
    sums = resampled_sums(pairs, seed=seed, resamples=resamples)
    total = pairs.sum(axis=0)
    return _interval(float(total[0] / total[1]), sums[:, 0] / sums[:, 1])


@dataclass(frozen=True)
class PairedLengths:
    """Two accepted lengths a and b over the same prompts: a - b, and a / b."""

    difference: Interval
    ratio: Interval


def compare_lengths(
    a: Sequence[PromptLength], b: Sequence[PromptLength], *, seed: int = 0
) -> PairedLengths | None:
    """How two accepted lengths differ over the same prompts, in the same order.

    Each resample draws prompts and takes both sides' rounds of each, so that what makes a prompt easy for
    both cancels. The means are those of the two accepted lengths themselves. None without rounds of both.

    Raises ValueError when the two are not of the same number of prompts.
    """
    columns = [
        (mine.gained, mine.rounds, other.gained, other.rounds) for mine, other in zip(a, b, strict=True)
    ]
    table = np.array(columns, dtype=np.float64).reshape(-1, 4)
    total = table.sum(axis=0)
    if not (total[1] and total[3]):
        return None
    sums = resampled_sums(table, seed=seed)
    sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    ours, theirs = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    mean_a, mean_b = float(total[0] / total[1]), float(total[2] / total[3])
    return PairedLengths(
        difference=_interval(mean_a - mean_b, ours - theirs),
        ratio=_interval(mean_a / mean_b, ours / theirs),
    )


def resampled_sums(
    table: NDArray[np.float64], *, seed: int, resamples: int = NUM_RESAMPLES
) -> NDArray[np.float64]:
    """Column sums ``[resamples, columns]`` over prompts (rows) drawn with replacement.

    Tables of as many rows get the same draws from the same seed, so that what is made of two is paired.
    """
    size = len(table)
    times_drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    return times_drawn @ table


def _interval(mean: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean, float(low), float(high))
