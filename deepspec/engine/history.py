"""What past rounds tell of drafting: how far drafts survive, how much was verified, and what that brought.

Kept on the host from the verdicts, with exponential forgetting, so it is a function of the past alone.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import NDArray

from deepspec.types import Load

#: What a round keeps of the weight of those before it: half of it after 34 rounds.
KEPT = 0.98


class RoundHistory:
    """Running means over the rounds of one engine, for drafts of up to ``draft_length`` tokens."""

    def __init__(self, draft_length: int) -> None:
        self._tried, self._passed = np.zeros(draft_length), np.zeros(draft_length)
        self._verified, self._accepted = np.zeros(draft_length), np.zeros(draft_length)
        self._requests, self._short = 0.0, 0

    def observe(self, accepted: NDArray[np.int64], verified: NDArray[np.int64], num_draft: int) -> None:
        """Take in a round of R requests that drafted ``num_draft`` tokens; int64 ``[R]`` each.

        Position j was tried where j tokens were verified and the j - 1 before it accepted. What lies past a
        refusal or a verify length was not, and counts neither way. A position that no request tried keeps
        what it has.
        """
        longest = len(self._tried)
        self._short = 0 if num_draft == longest else self._short + 1
        passed, tried = _at_least(accepted, longest), _at_least(np.minimum(accepted + 1, verified), longest)
        keep = np.where(tried > 0, KEPT, 1.0)
        self._tried, self._passed = keep * self._tried + tried, keep * self._passed + passed
        if num_draft == longest:
            self._requests = KEPT * self._requests + len(accepted)
            self._verified = KEPT * self._verified + _at_least(verified, longest)
            self._accepted = KEPT * self._accepted + passed

    def survival(self) -> tuple[float, ...]:
        """P(accepted >= j) for j = 1..G; empty while position 1 was never tried.

        The product of the conditional rates; the rate before a position counts as one more try of it, which
        is all there is of a position that was never tried.
        """
        tried, passed = self._tried.tolist(), self._passed.tolist()
        if not any(tried):
            return ()
        rates = [passed[0] / tried[0]]
        for all_of_it, gone_on in zip(tried[1:], passed[1:], strict=True):
            rates.append((gone_on + rates[-1]) / (all_of_it + 1))
        return tuple(accumulate(rates, mul))

    def load(self, num_requests: int, prefill_tokens: int) -> Load:
        """What a policy may know of the next round's past, beside its R and prompt tokens."""
        requests = self._requests
        return Load(
            num_requests,
            prefill_tokens,
            past_survival=self.survival(),
            past_verified=tuple((self._verified / requests).tolist()) if requests else (),
            past_accepted=tuple((self._accepted / requests).tolist()) if requests else (),
            rounds_short=self._short,
        )


def _at_least(counts: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """How many of ``counts [R]`` are at least j, for j = 1..longest."""
    return len(counts) - np.bincount(counts, minlength=longest + 1).cumsum()[:longest]
