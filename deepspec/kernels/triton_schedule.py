"""The prefix scheduler in three launches of Triton; see ``schedule`` for what it computes.

Nothing is sorted: a pair's place in the order, and the survival up to it, are a count and a sum over all
pairs that come no later, and the walk ends at the least key of all pairs that do not pay. That is quadratic,
shared among programs, and yet quicker than a sort in one of them; in integers it is exact, so decisions equal
the reference's. Grids follow from shapes and nothing waits for the device: a round can be captured in a CUDA
graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import schedule

#: Pairs of one program, and how many others it holds them against at a time; no result depends on either.
OWN, OTHERS = 8, 256
#: Requests that one program counts for.
ROWS = 64
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
_UNIT = tl.constexpr(schedule.UNIT)
_LAST = tl.constexpr(2**63 - 1)
_SIZES = ["num_requests", "num_draft", "first", "num_speeds", "num_losses"]


@triton.jit(do_not_specialize=_SIZES[:2])
def order_pairs(
    survival, request_stride, step_stride, drafted, keys, num_requests, num_draft,
    bits: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The key of every pair: what its survival in units lacks of one, then its number j * R + r.

    ``bits`` hold the number. Past the last pair, up to a whole tile, keys come after all others.
    """
    pair = tl.program_id(0) * tile + tl.arange(0, tile)
    r, j = pair % num_requests, pair // num_requests
    inside = j < num_draft
    alive = inside & (j < tl.load(drafted + r, mask=inside, other=0))
    offsets = r.to(tl.int64) * request_stride + j.to(tl.int64) * step_stride
    value = tl.load(survival + offsets, mask=alive, other=0.0).to(tl.float64)
    counted = tl.minimum(tl.maximum(tl.floor(value * _UNIT + 0.5), 1.0), _UNIT)
    lack = tl.where(alive & (value > 0), _UNIT - counted, _UNIT).to(tl.int64)
    tl.store(keys + pair, tl.where(inside, (lack << bits) | pair, _LAST))


@triton.jit(do_not_specialize=_SIZES[:4])
def first_losses(
    keys, curve, losses, num_requests, num_draft, first, num_speeds,
    bits: tl.constexpr, own: tl.constexpr, others: tl.constexpr,
):  # fmt: skip
    """The least key of each program's pairs that does not pay.

    ``first`` is the index in ``curve`` of the step that verifies nothing.
    """
    program = tl.program_id(0)
    mine = tl.load(keys + program * own + tl.arange(0, own))
    ranks = tl.zeros([own, others], tl.int32)
    sums = tl.zeros([own, others], tl.int64)
    for begin in range(0, num_requests * num_draft, others):
        other = tl.load(keys + begin + tl.arange(0, others))
        earlier = other[None, :] <= mine[:, None]
        lack = other >> bits
        ranks += earlier.to(tl.int32)
        sums += tl.where(earlier, lack[None, :], 0)
    rank = tl.sum(ranks, 1)
    whole = (rank + num_requests).to(tl.int64) * _UNIT
    after = whole - tl.sum(sums, 1)
    before = after + (mine >> bits) - _UNIT
    at = first + rank
    fewer = tl.load(curve + at - 1, mask=at <= num_speeds, other=0.0).to(tl.float64)
    more = tl.load(curve + at, mask=at < num_speeds, other=0.0).to(tl.float64)
    pays = (after > before) & (after.to(tl.float64) * more > before.to(tl.float64) * fewer)
    tl.store(losses + program, tl.min(tl.where(pays, _LAST, mine), 0))


@triton.jit(do_not_specialize=_SIZES)
def count_admitted(
    keys, losses, lengths, num_requests, num_draft, num_losses, rows: tl.constexpr, tile: tl.constexpr
):
    """How many pairs of each request come before the first that does not pay."""
    ends = tl.full([tile], _LAST, tl.int64)
    for begin in range(0, num_losses, tile):
        place = begin + tl.arange(0, tile)
        ends = tl.minimum(ends, tl.load(losses + place, mask=place < num_losses, other=_LAST))
    end = tl.min(ends, 0)
    r = tl.program_id(0) * rows + tl.arange(0, rows)
    inside = r < num_requests
    admitted = tl.zeros([rows], tl.int64)
    for j in range(num_draft):
        key = tl.load(keys + j * num_requests + r, mask=inside, other=_LAST)
        admitted += (key < end).to(tl.int64)
    tl.store(lengths + r, admitted, mask=inside)


@dataclass(frozen=True)
class ScheduleWorkspace:
    """What the launches leave, and the lengths; the next round with it overwrites all.

    Attributes:
        keys: int64 ``[R*G]``, to whole tiles. losses: int64 ``[ceil(R*G / OWN)]``. lengths: int64 ``[R]``.
    """

    keys: Tensor
    losses: Tensor
    lengths: Tensor

    @classmethod
    def allocate(cls, num_requests: int, num_draft: int, device: torch.device) -> ScheduleWorkspace:
        """Room for rounds of exactly this size; nothing is filled in."""
        sizes = _sizes(num_requests, num_draft)
        return cls(*(torch.empty(size, dtype=torch.int64, device=device) for size in sizes))


def prefix_lengths(
    survival: Tensor,
    drafted: Tensor,
    steps_per_second: Tensor,
    prefill_tokens: int = 0,
    *,
    workspace: ScheduleWorkspace | None = None,
) -> Tensor:
    """``schedule.prefix_lengths``; raises ConfigError for a workspace of another size."""
    num, num_draft = survival.shape
    room = workspace or ScheduleWorkspace.allocate(num, num_draft, survival.device)
    given, sizes = (len(room.keys), len(room.losses), len(room.lengths)), _sizes(num, num_draft)
    if given != sizes:
        raise ConfigError(
            f"a workspace of {given[0]} keys, {given[1]} losses and {given[2]} lengths; {num} requests of "
            f"{num_draft} tokens ask for {sizes[0]}, {sizes[1]} and {sizes[2]}: allocate one of its size"
        )
    if num * num_draft == 0:
        return room.lengths.zero_()
    counts, first = (num, num_draft), num + prefill_tokens - 1
    bits = (num * num_draft - 1).bit_length()
    with torch.accelerator.device_index(survival.device.index):
        order_pairs[(len(room.keys) // OTHERS,)](
            survival, *survival.stride(), drafted.contiguous(), room.keys, *counts,
            bits=bits, tile=OTHERS, **OPTIONS,
        )  # fmt: skip
        first_losses[(len(room.losses),)](
            room.keys, steps_per_second, room.losses, *counts, first, len(steps_per_second),
            bits=bits, own=OWN, others=OTHERS, **OPTIONS,
        )  # fmt: skip
        count_admitted[(triton.cdiv(num, ROWS),)](
            room.keys, room.losses, room.lengths, *counts, len(room.losses),
            rows=ROWS, tile=OTHERS, **OPTIONS,
        )  # fmt: skip
    return room.lengths


def _sizes(num_requests: int, num_draft: int) -> tuple[int, int, int]:
    pairs = num_requests * num_draft
    return triton.cdiv(pairs, OTHERS) * OTHERS, triton.cdiv(pairs, OWN), num_requests
