"""The simulated engine: slots, chunked prompts, rounds, and a clock that a curve drives.

A step is what the engine's is: prompt chunks and verify rows in one target pass of B tokens, 1 / SPS(B)
seconds long, after the time that drafting takes. All requests of a step are one array.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.curves import SpsCurve
from deepspec.engine.history import RoundHistory
from deepspec.interfaces import LengthPolicy
from deepspec.kernels.schedule import check_survival
from deepspec.simulate.acceptance import AcceptanceModel
from deepspec.simulate.workload import Requests

#: Prompt tokens that a step takes in at most, as serving engines have it; with fewer they hold up all.
PREFILL_CHUNK = 2048


@dataclass(frozen=True)
class Served:
    """What came of a simulation, its first steps left out.

    Attributes:
        tokens_per_s: of all requests together. tokens_per_s_per_user: of one while it decodes, the mean.
        verify_budget: tokens of a decoding request in a target step, its anchor counted: 1 + verify length.
        tbt_ms_p50, tbt_ms_p99: time between tokens: a round's time over what a request gained in it,
            quantiles over tokens.
        accepted_length: tokens gained in a round, bonus included. draft_length: drafted in a round.
        num_steps: how many were counted.
    """

    tokens_per_s: float
    tokens_per_s_per_user: float
    verify_budget: float
    tbt_ms_p50: float
    tbt_ms_p99: float
    accepted_length: float
    draft_length: float
    num_steps: int


def serve(
    policy: LengthPolicy,
    curve: SpsCurve,
    acceptance: AcceptanceModel,
    requests: Requests,
    *,
    num_slots: int,
    num_steps: int,
    num_tokens: float = math.inf,
    prefill_chunk: int = PREFILL_CHUNK,
    warm_up: float = 0.2,
    foresees: bool = False,
) -> Served:
    """Serve for ``num_steps``, or until requests that come at given times are all done.

    Args:
        policy: one of its own for each simulation; its ``curve`` becomes this one.
        num_tokens: or until so many were written; policies that differ in speed then serve the same requests.
        prefill_chunk: prompt tokens that a step takes in at most; they count in B.
        warm_up: share of the steps that is left out of what is reported.
        foresees: whether the policy knew beforehand what it would verify, and paid for drafting only that.
    """
    simulation = _Simulation(policy, curve, acceptance, requests, num_slots, prefill_chunk, foresees)
    simulation.fill()
    with torch.inference_mode():
        for _ in range(num_steps):
            if simulation.written >= num_tokens or not simulation.step():
                break
    return simulation.report(warm_up)


class _Simulation:
    """Slots and clock; ``owner`` is a slot's request, -1 where it is free."""

    def __init__(
        self,
        policy: LengthPolicy,
        curve: SpsCurve,
        acceptance: AcceptanceModel,
        requests: Requests,
        num_slots: int,
        prefill_chunk: int,
        foresees: bool,
    ) -> None:
        self.policy, self.curve, self.acceptance = policy, curve, acceptance
        self.requests, self.chunk, self.foresees = requests, prefill_chunk, foresees
        policy.curve = curve
        self.most = policy.context.draft_length
        self.speeds = torch.tensor(
            curve.table(num_slots * (1 + self.most) + prefill_chunk), dtype=torch.float64
        )
        self.times = 1 / self.speeds.numpy()
        self.history, self.survivals = RoundHistory(self.most), deque[Tensor](maxlen=2)
        self.owner = np.full(num_slots, -1)
        self.prompt, self.output = np.zeros(num_slots, np.int64), np.zeros(num_slots, np.int64)
        self.clock, self.next, self.written = 0.0, 0, 0
        self.rows: list[tuple[float, int, int, int]] = []  # seconds, R, verify rows, G of each step
        self.gains: list[NDArray[np.int64]] = []  # how many requests gained 0.. tokens in each step

    def fill(self) -> None:
        """Of requests that come without end, begin in the midst: all slots taken, their prompts read.

        What is left of an answer of exponential length is as long as a whole one.
        """
        if self.requests.arrivals is None:
            self._admit()
            self.prompt[:] = 0

    def step(self) -> bool:
        """One target step; False when nothing is left to do."""
        self._admit()
        if self.requests.arrivals is not None and (self.owner < 0).all():
            if self.next >= len(self.requests.classes):
                return False
            self.clock = float(self.requests.arrivals[self.next])
            self._admit()
        decoding = ((self.owner >= 0) & (self.prompt == 0)).nonzero()[0]
        prefill = self._read_prompts()
        paid, rows, num_draft, gained = 0, 0, 0, np.zeros(0, np.int64)
        if len(decoding):
            paid, rows, num_draft, gained = self._round(decoding, prefill)
        drafting = self.curve.draft_seconds(len(decoding), paid, prefill)
        seconds = float(self.times[rows + prefill - 1]) + drafting
        self.clock += seconds
        self.written += int(gained.sum())
        self.rows.append((seconds, len(decoding), rows, num_draft))
        self.gains.append(np.bincount(gained, minlength=self.most + 2))
        self.owner[(self.prompt == 0) & (self.output <= 0)] = -1
        return True

    def _admit(self) -> None:
        """Give free slots to those who wait."""
        free = (self.owner < 0).nonzero()[0]
        count, arrivals = len(free), self.requests.arrivals
        if arrivals is not None:
            count = min(count, int(arrivals.searchsorted(self.clock, side="right")) - self.next)
        if count == 0:
            return
        slots, numbers = free[:count], self.next + np.arange(count)
        self.next += count
        of = numbers % len(self.requests.classes)
        self.owner[slots] = numbers
        self.prompt[slots], self.output[slots] = (
            self.requests.prompt_tokens[of],
            self.requests.output_tokens[of],
        )
        self.acceptance.start(slots, self.requests.classes[of])

    def _read_prompts(self) -> int:
        """Take in the next chunk of prompts, first come first; the last of a prompt gives a token."""
        reading = (self.prompt > 0).nonzero()[0]
        if len(reading) == 0:
            return 0
        reading = reading[self.owner[reading].argsort()]
        left = self.prompt[reading]
        room = np.clip(self.chunk - (left.cumsum() - left), 0, left)
        self.prompt[reading] -= room
        self.output[reading[room == left]] -= 1
        return int(room.sum())

    def _round(self, decoding: NDArray[np.int64], prefill: int) -> tuple[int, int, int, NDArray[np.int64]]:
        """Draft, verify and commit; G that is paid, verify rows, G that was drafted, and what each gained."""
        num = len(decoding)
        earlier = self.survivals[0] if len(self.survivals) == 2 else None
        load = replace(
            self.history.load(num, prefill), steps_per_second=self.speeds, earlier_survival=earlier
        )
        num_draft = self.policy.draft_length(load)
        drafted = self.acceptance.round(decoding)
        lengths = np.zeros(num, np.int64)
        if num_draft > 0:
            survival = torch.from_numpy(drafted.conditional[:, :num_draft].cumprod(axis=1))
            if not self.rows:
                check_survival(survival)
            self.survivals.append(survival)
            lengths = self.policy.lengths(survival, torch.full((num,), num_draft), load).numpy()
        accepted = np.minimum(drafted.accepted, lengths)
        self.history.observe(accepted, lengths, num_draft)
        gained = np.minimum(accepted + 1, self.output[decoding])
        self.output[decoding] -= gained
        paid = int(lengths.max()) if self.foresees else num_draft
        return paid, num + int(lengths.sum()), num_draft, gained

    def report(self, warm_up: float) -> Served:
        """Means and quantiles after the first steps."""
        first = int(warm_up * len(self.rows))
        seconds, requests, rows, drafts = np.array(self.rows[first:], dtype=np.float64).T
        gains = np.array(self.gains[first:])
        sizes = np.arange(gains.shape[1])
        tokens, rounds = float((gains * sizes).sum()), max(float(requests.sum()), 1.0)
        between = 1e3 * seconds[:, None] / np.maximum(sizes, 1)
        low, high = _quantiles(between.ravel(), (gains * sizes).ravel(), (0.5, 0.99))
        return Served(
            tokens_per_s=tokens / float(seconds.sum()),
            tokens_per_s_per_user=tokens / float((seconds * requests).sum() or 1.0),
            verify_budget=float(rows.sum()) / rounds,
            tbt_ms_p50=low,
            tbt_ms_p99=high,
            accepted_length=tokens / rounds,
            draft_length=float((drafts * requests).sum()) / rounds,
            num_steps=len(seconds),
        )


def _quantiles(values: NDArray[np.float64], weights: NDArray[np.int64], at: tuple[float, ...]) -> list[float]:
    """Of values that count ``weights`` times each."""
    order = values.argsort()
    total = weights[order].cumsum()
    places = total.searchsorted([share * total[-1] for share in at])
    return [float(values[order[min(place, len(order) - 1)]]) for place in places]
