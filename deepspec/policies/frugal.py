"""Drafts only what it expects to verify, and nothing where drafting costs more than it brings.

Verifying is settled round by round, as ``cliff`` does. Whether to draft, and how much, has to be settled
before there are confidences: from what was verified and accepted at each position of past rounds that drafted
all. Where tokens are taken in the order of their survival, x of them bring (1 - exp(-d x)) / d a request,
survival falling by d per token; the past says d, at whatever load it was, and with it what another x would
bring at another load. Shorter drafts lose the past's share of what lies deeper. Prompt tokens have to be read
anyhow, in some step: what they take by themselves counts against no draft. A past that is never renewed would
go stale, so every so often a round drafts all.
"""

from __future__ import annotations

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
#: Verify lengths below it are none.
_LEAST = 1e-6
#: u = d x from what makes no difference to what leaves nothing, and the share that is then accepted.
_FALLS = np.geomspace(1e-6, 1e4, 4096)
_SHARES = -np.expm1(-_FALLS) / _FALLS


class FrugalConfig(CurveConfig):
    """Options of the frugal policy."""

    explore_every: int = Field(
        default=64, ge=2, description="of so many rounds one drafts all, expected to pay or not"
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
        if self.curve is None or not load.past_verified or load.num_requests == 0:
            return most
        throughput = self._throughput(load, self.curve)
        best = most - int(throughput[::-1].argmax())
        return most if load.rounds_short + 1 >= self.config.explore_every else best

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        return self._schedule(survival, drafted, load, self.curve, counts_prompts=False)

    def _throughput(self, load: Load, curve: SpsCurve) -> NDArray[np.float64]:
        """Expected tokens per second with the best verify length, after drafting 0..G tokens: ``[G + 1]``."""
        num, most = load.num_requests, self.context.draft_length
        verified = np.array([0.0, *load.past_verified]).cumsum()[:, None]
        accepted = np.array([0.0, *load.past_accepted]).cumsum()[:, None]
        lengths = np.arange(0, most + _STEP, _STEP)
        gains = brought(lengths, fall_of(float(verified[-1, 0]), float(accepted[-1, 0])))
        sent = lengths * (verified / max(verified[-1, 0], _LEAST))
        tokens = num + load.prefill_tokens + np.ceil(num * sent).astype(np.int64)
        if len(self._times) <= tokens.max():
            self._times = 1 / np.array([1.0, *curve.table(2 * int(tokens.max()))])
        drafting = np.array([[curve.draft_seconds(num, num_draft)] for num_draft in range(most + 1)])
        apart = self._times[num + load.prefill_tokens] - self._times[num]
        kept = accepted / max(accepted[-1, 0], _LEAST)
        throughput = num * (1 + gains * kept) / (self._times[tokens] - apart + drafting)
        return throughput.max(axis=1)


def brought(lengths: NDArray[np.float64], decline: float) -> NDArray[np.float64]:
    """Accepted tokens of a request of which x are verified, (1 - exp(-d x)) / d, for each x; d > 0."""
    return -np.expm1(-decline * lengths) / decline


def fall_of(verified: float, accepted: float) -> float:
    """The d for which ``verified`` tokens bring ``accepted`` of them, by a table of (1 - exp(-u)) / u."""
    length = max(verified, _LEAST)
    return float(np.interp(accepted / length, _SHARES[::-1], _FALLS[::-1])) / length
