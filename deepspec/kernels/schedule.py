"""The prefix scheduler in plain torch: which drafted tokens are worth a row of the next target step.

Survival is counted in units of 2^-40, in integers, so that sums are exact in whatever order a device adds
them up: every implementation takes the same decisions, with no margins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepspec.errors import ConfigError

#: Survival 1 in units.
UNIT = 2**40


def prefix_lengths(
    survival: Tensor, drafted: Tensor, steps_per_second: Tensor, prefill_tokens: int = 0
) -> Tensor:
    """Verify lengths of the hardware-aware prefix scheduler (DSpark, 2607.05147): int64 ``[R]``.

    All (r, j) with a > 0 in the order of (-a, j, r), so never (r, j+1) before (r, j); the first i of them
    give B = R + i + prefill_tokens, tau = R + sum a and Theta = tau * SPS(B); the walk ends at the first
    Theta that does not exceed the one before. What lies past that is not looked at, so that no token decides
    whether it is verified.

    Args:
        survival: a ``[R, G]`` in 0..1, never increasing along a row (:func:`check_survival`).
        drafted: int64 ``[R]``.
        steps_per_second: float64 ``[L]``, SPS(B) at B = 1..L; past L nothing is admitted.
        prefill_tokens: prompt tokens in the same step.
    """
    num, num_draft = survival.shape
    if num_draft == 0:
        return torch.zeros_like(drafted)
    pairs = num * num_draft
    window = steps_per_second[num + prefill_tokens - 1 :][: pairs + 1]
    return prefix_walk(survival, drafted, torch.nn.functional.pad(window, (0, pairs + 1 - len(window))))


def prefix_walk(survival: Tensor, drafted: Tensor, speed: Tensor) -> Tensor:
    """:func:`prefix_lengths` by the speed with 0..R*G drafted tokens admitted, ``[R * G + 1]``; G >= 1."""
    pairs = survival.numel()
    keys, ordered = walk_order(survival, drafted, speed.dtype)
    taken = UNIT - ordered // pairs
    expected = torch.cat([taken.new_full((1,), len(survival) * UNIT), taken]).cumsum(dim=0)
    throughput = expected.to(speed.dtype) * speed
    pays = (throughput[1:] > throughput[:-1]) & (taken > 0)
    admitted = pays.to(torch.int64).cumprod(dim=0).sum(dim=0, keepdim=True)
    return first_of(keys, ordered, admitted)


def walk_order(survival: Tensor, drafted: Tensor, real: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys int64 ``[R, G]`` of the drafted tokens in the order (-a, j, r), and the same sorted, ``[R * G]``.

    ``UNIT - key // (R * G)`` is a token's survival in units, 0 where it is none or was not drafted. G >= 1.
    """
    num, num_draft = survival.shape
    steps = torch.arange(num_draft, device=survival.device)
    gains = _units(survival, steps < drafted[:, None], real)
    places = steps * num + torch.arange(num, device=survival.device)[:, None]
    keys = (UNIT - gains) * (num * num_draft) + places
    return keys, keys.flatten().sort().values


def first_of(keys: Tensor, ordered: Tensor, count: Tensor) -> Tensor:
    """Verify lengths int64 ``[R]`` that take in the first ``count [1]`` tokens of :func:`walk_order`."""
    ends = torch.cat([ordered, ordered.new_full((1,), torch.iinfo(torch.int64).max)])
    return (keys < ends.gather(0, count)).sum(dim=1)


def _units(survival: Tensor, inside: Tensor, real: torch.dtype) -> Tensor:
    """Survival in units, to the nearest, at least 1 where it is above 0: int64 ``[R, G]``."""
    counted = (survival.to(real) * UNIT + 0.5).to(torch.int64).clamp(1, UNIT)
    return torch.where(inside & (survival > 0), counted, 0)


def checked(schedule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The scheduler, after :func:`check_survival` of what it is given."""

    def run(survival: Tensor, *rest: Any) -> Tensor:
        check_survival(survival)
        return schedule(survival, *rest)

    return run


def check_survival(survival: Tensor) -> None:
    """Raise ConfigError at the first survival that is none; waits for the device, so for debugging only."""
    rises = torch.nn.functional.pad(survival.diff(dim=1) > 0, (1, 0))
    wrong = (~((survival >= 0) & (survival <= 1)) | rises).nonzero()
    if len(wrong):
        r, k = wrong[0].tolist()
        before = f" after {float(survival[r, k - 1])}" if k else ""
        raise ConfigError(
            f"survival of request {r} at position {k} is {float(survival[r, k])}{before}; allowed is 0..1, "
            "never increasing along a block: look at the calibrator, which gives the conditional acceptance"
        )
