"""The prefix scheduler's walk on the lower hull of step time, a segment of it at a time.

Step times of real machines have cliffs: a tile of a matrix product costs the same however full it is. At the
foot of one no single token pays, so the prefix scheduler stops there for good. Here the walk asks at each
corner of the hull whether the *whole* way to the next corner is expected to pay. What is expected is the
past's: from the survival of the next token, which the walk may see, tokens fall off at the rate of past
rounds. Once it sets out it admits all of them, so no token decides whether it is verified. On a convex curve
every segment is one token long, nothing is expected, and the walk is the prefix scheduler's.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepspec.curves import SpsCurve
from deepspec.kernels.schedule import UNIT, first_of, prefix_walk, walk_order
from deepspec.policies.scheduling import all_alive, step_speeds
from deepspec.types import Load

#: Relative difference of two slopes of a curve that count as one.
_SAME = 1e-9
#: A rate of 1 would divide 0 by 0.
_MOST_KEPT = 1 - 1e-12
_ROWS = 256


def hull_corners(steps_per_second: Tensor) -> Tensor:
    """Which points of a curve ``[L]`` lie on the lower convex hull of its step time: bool ``[L]``."""
    times = 1 / steps_per_second
    tokens = torch.arange(len(times), device=times.device)
    found = []
    for rows in tokens.split(_ROWS):
        apart = (tokens - rows[:, None]).to(times.dtype)
        slopes = (times - times[rows][:, None]) / torch.where(apart == 0, 1.0, apart)
        before = torch.where(apart < 0, slopes, -torch.inf).amax(dim=1)
        after = torch.where(apart > 0, slopes, torch.inf).amin(dim=1)
        found.append(before <= after + _SAME * after.abs().nan_to_num(posinf=0.0))
    return torch.cat(found)


def hull_lengths(
    survival: Tensor, drafted: Tensor, speed: Tensor, corners: Tensor, past_survival: tuple[float, ...]
) -> Tensor:
    """Verify lengths int64 ``[R]``.

    Args:
        survival: ``[R, G]``, never increasing along a row. drafted: int64 ``[R]``.
        speed: float64 ``[R * G + 1]``, rounds per second with 0.. tokens admitted.
        corners: int64 ``[C]``, ascending from 0, below R * G: with how many tokens it may stop and think.
        past_survival: see :class:`deepspec.types.Load`; where empty, no fall is expected.
    """
    pairs = survival.numel()
    keys, ordered = walk_order(survival, drafted, speed.dtype)
    taken = UNIT - ordered // pairs
    total = torch.cat([taken.new_full((1,), len(survival) * UNIT), taken]).cumsum(dim=0).to(speed.dtype)
    throughput = total * speed
    pays = throughput[1:] > throughput[:-1]
    following = pad(corners[1:], (0, 1), value=pairs).minimum(drafted.sum(dim=0, keepdim=True))
    ahead = following - corners
    left = _requests_left(keys, drafted, ordered[corners])
    expected = total[corners] + taken[corners] * _expected(left, ahead, past_survival, speed.dtype)
    sets_out = torch.where(ahead > 1, expected * speed[following] > throughput[corners], pays[corners])
    num_crossed = sets_out.to(torch.int64).cumprod(dim=0).sum(dim=0, keepdim=True)
    crossed = pad(corners, (0, 1), value=pairs).gather(0, num_crossed)
    goes_on = ((torch.arange(pairs, device=speed.device) < crossed) | pays) & (taken > 0)
    return first_of(keys, ordered, goes_on.to(torch.int64).cumprod(dim=0).sum(dim=0, keepdim=True))


def _requests_left(keys: Tensor, drafted: Tensor, reached: Tensor) -> Tensor:
    """How many requests have tokens left when the walk comes to the keys ``reached [C]``: int64 ``[C]``."""
    last = keys.gather(1, (drafted - 1).clamp(min=0)[:, None])[:, 0]
    ends = torch.where(drafted > 0, last, -1).sort().values
    return len(drafted) - torch.searchsorted(ends, reached)


def _expected(left: Tensor, ahead: Tensor, past_survival: tuple[float, ...], real: torch.dtype) -> Tensor:
    """What ``ahead [C]`` tokens bring, the first of them 1, where ``left [C]`` requests have tokens left.

    Where requests lose a share 1 - c of survival from each token to the next, the tokens of n requests in the
    order of survival fall by c ** (1 / n), so k of them bring (1 - c ** (k / n)) / (1 - c ** (1 / n)).
    """
    rate = past_survival[-1] ** (1 / len(past_survival)) if past_survival else 1.0
    fall = math.log(min(rate, _MOST_KEPT)) if rate > 0 else -math.inf
    each = fall / left.clamp(min=1).to(real)
    return torch.expm1(each * ahead) / torch.expm1(each)


class HullScheduler:
    """:func:`hull_lengths` for the curve of a load, whose corners are found once; all without a curve."""

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._corners, self._places = torch.zeros(0, dtype=torch.int64), [0]

    def __call__(
        self,
        survival: Tensor,
        drafted: Tensor,
        load: Load,
        curve: SpsCurve | None,
        *,
        counts_prompts: bool = True,
    ) -> Tensor:
        """Verify lengths int64 ``[R]``; ``curve`` says what drafting takes. See :func:`step_speeds`."""
        table, num_draft = load.steps_per_second, survival.shape[1]
        if table is None or num_draft == 0:
            return all_alive(survival, drafted)
        pairs = survival.numel()
        speed = step_speeds(load, pairs, curve, num_draft, counts_prompts=counts_prompts)
        if curve is not None and curve.is_convex:
            return prefix_walk(survival, drafted, speed)
        if self._table is not table:
            self._table, self._corners = table, hull_corners(table).nonzero()[:, 0]
            self._places = self._corners.tolist()
        start = load.num_requests + load.prefill_tokens - 1
        first, end = bisect_right(self._places, start), bisect_left(self._places, start + pairs)
        corners = pad(self._corners[first:end] - start, (1, 0))
        return hull_lengths(survival, drafted, speed, corners, load.past_survival)
