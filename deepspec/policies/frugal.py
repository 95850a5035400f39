"""Drafts only what it expects to verify, and nothing where drafting costs more than it brings.

Verifying is settled round by round, as ``cliff`` does. Whether to draft, and how much, has to be settled before
there are confidences: from the past's verify and accepted lengths. Where tokens are taken in the order of their
survival, x of them bring (1 - exp(-d x)) / d a request, survival falling by d per token; the past's pair of
lengths says d, at whatever load it was measured, and with it what another x would bring at another load. Skipping
for long would leave the past stale, so every so often a round drafts regardless.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from deepspec.curves import SpsCurve
from deepspec.interfaces import BuildContext, LengthPolicy
from deepspec.policies.hull import HullScheduler
from deepspec.policies.scheduling import CurveConfig, read_curve
from deepspec.types import Load

#: How finely verify lengths are tried, in tokens of a request.
_STEP = 0.125
#: A decline that makes no difference.
_FLAT = 1e-9


class FrugalConfig(CurveConfig):
    """Options of the frugal policy."""

    explore_every: int = Field(
        default=64, ge=2, description="rounds after which one drafts though it is not expected to pay"
    )


class FrugalLength(LengthPolicy):
    """Weighs T(B) plus the time to draft against what past drafts brought."""

    name = "frugal"
    needs_curve: ClassVar[bool] = True
    Config = FrugalConfig
    config: FrugalConfig

    def __init__(self, config: FrugalConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.curve = read_curve(config)
        self._schedule = HullScheduler()
        self._times = np.zeros(0)  # T(B) at B = 0.., as far as it was asked for

    def draft_length(self, load: Load) -> int:
        """See :class:`deepspec.interfaces.LengthPolicy`; 0 where plain decoding is expected to be faster."""
        most = self.context.draft_length
        if self.curve is None or not load.past_survival or load.num_requests == 0:
            return most
        throughput = self._throughput(load, self.curve)
        best = most - int(throughput[::-1].argmax())
        explores = best == 0 and load.rounds_skipped + 1 >= self.config.explore_every
        return most if explores else best

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        return self._schedule(survival, drafted, load, self.curve)

    def _throughput(self, load: Load, curve: SpsCurve) -> NDArray[np.float64]:
        """Expected tokens per second with the best verify length, after drafting 0..G tokens: ``[G + 1]``."""
        num, most = load.num_requests, self.context.draft_length
        lengths = np.arange(0, most + _STEP, _STEP)
        tokens = num + load.prefill_tokens + np.ceil(num * lengths).astype(np.int64)
        if len(self._times) <= tokens[-1]:
            self._times = 1 / np.array([1.0, *curve.table(2 * int(tokens[-1]))])
        gains = brought(lengths, fall_of(load.past_verified, load.past_accepted))
        reach = np.array([0.0, *accumulate(load.past_survival)])[:, None]
        drafting = np.array([curve.draft_seconds(num, num_draft) for num_draft in range(most + 1)])[:, None]
        drafted = lengths <= np.arange(most + 1)[:, None]
        throughput = num * (1 + np.minimum(gains, reach)) / (self._times[tokens] + drafting)
        return np.where(drafted, throughput, 0.0).max(axis=1)


def brought(lengths: NDArray[np.float64], decline: float) -> NDArray[np.float64]:
    """Accepted tokens of a request of which x are verified, (1 - exp(-d x)) / d, for each x."""
    return lengths if decline < _FLAT else -np.expm1(-decline * lengths) / decline


def fall_of(verified: float, accepted: float) -> float:
    """The d in 0..50 for which ``verified`` tokens bring ``accepted`` of them."""
    low, high = 0.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        above = -math.expm1(-middle * verified) > accepted * middle
        low, high = (middle, high) if above else (low, middle)
    return low
