"""Recorded rounds in place of modelled ones: what became of real drafts, replayed request by request.

A replay cuts a round that verified all G tokens to the length that a policy asks for. It has the law of a
round of that length under every verifier that ships: whether j tokens are accepted depends on the first j.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepspec.calibrators.temperature import sequential_temperatures
from deepspec.errors import ConfigError, DataError
from deepspec.rounds import sigmoid
from deepspec.simulate.acceptance import AcceptanceModel, DraftedRounds, Floats, Ints
from deepspec.trace import Trace, read_trace

#: Fewer rounds fit no temperatures, and replayed over and over they say little.
LEAST_ROUNDS = 500


@dataclass(frozen=True)
class RecordedRounds:
    """N rounds that verified everything, those of a request side by side and in order.

    Attributes:
        conditional: ``[N, G]`` calibrated conditional acceptances. accepted: int64 ``[N]``.
        requests: int64 ``[N]``, whose round it is.
    """

    conditional: Floats
    accepted: Ints
    requests: Ints

    def __post_init__(self) -> None:
        """Raises ConfigError for shapes that do not fit, and values out of range."""
        same = self.conditional.shape[:1] == self.accepted.shape == self.requests.shape
        if self.conditional.ndim != 2 or not same or len(self.conditional) == 0:
            shapes = [list(part.shape) for part in (self.conditional, self.accepted, self.requests)]
            raise ConfigError(
                f"recorded rounds have conditional acceptances {shapes[0]}, accepted {shapes[1]} and "
                f"requests {shapes[2]}; give [N, G], [N] and [N], N at least 1"
            )
        wrong = ~((self.conditional >= 0) & (self.conditional <= 1)).all(axis=1)
        wrong |= (self.accepted < 0) | (self.accepted > self.draft_length)
        if wrong.any():
            first = int(wrong.argmax())
            raise ConfigError(
                f"recorded round {first} has conditional acceptances {self.conditional[first].tolist()} and "
                f"{self.accepted[first]} accepted; allowed are 0..1 and 0..{self.draft_length}"
            )

    @property
    def draft_length(self) -> int:
        """G."""
        return self.conditional.shape[1]

    def shortened(self, draft_length: int) -> RecordedRounds:
        """The same rounds with fewer tokens drafted; raises ConfigError for more than were."""
        if not 1 <= draft_length <= self.draft_length:
            raise ConfigError(
                f"draft length is {draft_length} and the recorded rounds drafted {self.draft_length}; "
                f"allowed are 1..{self.draft_length}"
            )
        accepted = np.minimum(self.accepted, draft_length)
        return RecordedRounds(self.conditional[:, :draft_length], accepted, self.requests)


class RecordedAcceptance(AcceptanceModel):
    """Each request goes through a recorded one, from a random round of it, and again from its first."""

    def __init__(self, rounds: RecordedRounds, num_slots: int, seed: int) -> None:
        self._rounds, self._random = rounds, np.random.default_rng([seed, 4])
        self._at = np.zeros(num_slots, np.int64)
        starts = np.diff(rounds.requests, prepend=rounds.requests[0] - 1) != 0
        first_of = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
        ends = np.append(starts[1:], True)
        self._following = np.where(ends, first_of, np.arange(len(starts)) + 1)

    def start(self, slots: Ints, classes: Ints) -> None:
        """See :class:`AcceptanceModel`; recordings have no classes."""
        self._at[slots] = (self._random.random(len(slots)) * len(self._following)).astype(np.int64)

    def round(self, slots: Ints) -> DraftedRounds:
        """See :class:`AcceptanceModel`."""
        at = self._at[slots]
        self._at[slots] = self._following[at]
        return DraftedRounds(self._rounds.conditional[at], self._rounds.accepted[at])


def read_rounds(path: str | Path) -> RecordedRounds:
    """The rounds of an ``eval --trace`` file, its confidences scaled by temperatures that are fitted to it.

    Raises DataError in one line for a file that is none, and where a round left tokens out: what would have
    become of them is not known, and to go by the others alone would favour what a policy is sure of.
    """
    trace = read_trace(path)
    _check(trace, path)
    return rounds_of(trace, sigmoid(trace.confidence / sequential_temperatures(trace.rounds())))


def rounds_of(trace: Trace, conditional: Floats) -> RecordedRounds:
    """A trace's rounds, all of which verified everything, with conditional acceptances ``[N, G]``."""
    number = trace.columns["request_id"]
    tasks = np.unique(trace.columns["task"].astype(str), return_inverse=True)[1]
    whose = tasks * (number.max() + 1) + number
    order = np.lexsort((trace.columns["step"], whose))
    return RecordedRounds(conditional[order], trace.columns["accepted"][order], whose[order])


def _check(trace: Trace, path: str | Path) -> None:
    length = trace.header.draft_length
    short = int((trace.columns["verified"] < length).sum())
    if short:
        raise DataError(
            f"trace {path}: {short} of {len(trace)} rounds verified fewer than {length} tokens; write one "
            "that verifies all: deepspec eval RUN --set policy=fixed --trace FILE"
        )
    if np.isnan(trace.confidence).any():
        raise DataError(
            f"trace {path} has rounds without confidences, which policies read; write one with them: "
            "deepspec eval RUN --set head.confidence=row_max --trace FILE"
        )
    if len(trace) < LEAST_ROUNDS:
        raise DataError(
            f"trace {path} has {len(trace)} rounds and a replay needs {LEAST_ROUNDS}: "
            f"{LEAST_ROUNDS - len(trace)} are missing; decode more (--num-prompts, --max-tokens)"
        )
