"""Drafting one position in two launches of Triton: the sequential head's correction, then the draw.

``correct_rows`` reads base logits and W_out once, writes base + latent @ W_out^T as the stored row, and of
the values as they are stored leaves statistics by tile; ``draw_stored`` reads those, a block of the stored
row, and two uniforms. In passes over V values of the stored type, R requests and a W_out of rank Z take
Z + 2R; a product into memory (Z + R), its addition (3R) and a pass for statistics (R) take Z + 5R. At Z = 256
that is 512 for 896 at R = 128 and 258 for 261 at R = 1: it pays at every R, so it is always fused, with tiles
that depend on no R. Without a head's latent the first launch is ``triton_rows.block_stats``.

Nothing is reduced across rows, so no row depends on its batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.kernels.triton_rows import block_stats, load_temperature, pick, weight_of
from deepspec.sampling.categorical import BLOCK
from deepspec.sampling.sampler import Drawn
from deepspec.types import Sampling

#: Rows and tokens of one program of ``correct_rows``, and how much of the latent it takes at a time.
ROWS, TILE, DEPTH = 64, 128, 64
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["num_requests"])
def correct_rows(
    base, base_stride, latent, latent_stride, weight, weight_stride, temperature, stored, stored_stride,
    peaks, totals, bests, num_requests, vocab_size, rank, num_tiles,
    rows: tl.constexpr, tile: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """base + latent @ weight^T of some rows and tokens, rounded to the stored type; and of what is stored,
    by row and tile: the largest value, the sum of weights under it, the largest's token."""
    group, part = tl.program_id(0), tl.program_id(1)
    r = group * rows + tl.arange(0, rows)
    tokens = part * tile + tl.arange(0, tile)
    real, inside = r < num_requests, tokens < vocab_size
    request, token = r.to(tl.int64), tokens.to(tl.int64)
    sums = tl.zeros([rows, tile], tl.float32)
    for begin in range(0, rank, depth):
        z = begin + tl.arange(0, depth)
        within = z < rank
        left = latent + request[:, None] * latent_stride + z[None, :]
        left = tl.load(left, mask=real[:, None] & within[None, :], other=0.0)
        right = weight + token[None, :] * weight_stride + z[:, None]
        right = tl.load(right, mask=within[:, None] & inside[None, :], other=0.0)
        sums = tl.dot(left, right.to(left.dtype), sums, input_precision="ieee")
    held = real[:, None] & inside[None, :]
    given = tl.load(base + request[:, None] * base_stride + token[None, :], mask=held, other=0.0)
    kept = (given.to(tl.float32) + sums).to(stored.dtype.element_ty)
    tl.store(stored + request[:, None] * stored_stride + token[None, :], kept, mask=held)
    values = tl.where(inside[None, :], kept.to(tl.float32), float("-inf"))
    peak, place = tl.max(values, axis=1, return_indices=True)
    given_temperature = tl.load(temperature + request, mask=real, other=1.0).to(tl.float32)
    inverse = 1.0 / tl.where(given_temperature == 0, 1.0, given_temperature)
    total = tl.sum(weight_of(values, peak[:, None], inverse[:, None]), axis=1)
    cell = request * num_tiles + part
    tl.store(peaks + cell, peak, mask=real)
    tl.store(totals + cell, total, mask=real)
    tl.store(bests + cell, tl.minimum(part * tile + place, vocab_size - 1), mask=real)


@triton.jit
def draw_stored(
    stored, stored_stride, temperature, uniforms, request_stride, level_stride, peaks, totals, bests,
    tokens, log_sum_exps, log_qs, vocab_size, num_tiles,
    block: tl.constexpr, parts: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    """Each row: log-sum-exp after temperature, a token by block and then inside it, the token's log q.

    A block of the vocabulary is ``tiles`` tiles; a row holds ``parts`` blocks at most. Temperature 0 takes
    the first largest, whose q is 1. A row of no mass gives the last token, as the reference does.
    """
    r = tl.program_id(0).to(tl.int64)
    value, inverse, greedy = load_temperature(temperature, r)
    part, index = tl.arange(0, parts), tl.arange(0, block)
    tile = part[:, None] * tiles + tl.arange(0, tiles)[None, :]
    held = tile < num_tiles
    cell = r * num_tiles + tile
    tile_peak = tl.load(peaks + cell, mask=held, other=float("-inf"))
    peak = tl.max(tl.max(tile_peak, axis=1), axis=0)
    if greedy:
        best = tl.load(bests + cell, mask=held, other=vocab_size - 1)
        best = tl.where(tile_peak == peak, best, vocab_size - 1)
        tl.store(tokens + r, tl.min(tl.min(best, axis=1), axis=0))
        tl.store(log_sum_exps + r, 0.0)
        tl.store(log_qs + r, 0.0)
        return
    mass = tl.load(totals + cell, mask=held, other=0.0) * weight_of(tile_peak, peak, inverse)
    mass = tl.sum(mass, axis=1)
    log_sum_exp = tl.div_rn(peak, value) + tl.log(tl.sum(mass, axis=0))
    noise = uniforms + r * request_stride
    first = tl.maximum(pick(mass, tl.load(noise), part), 0) * block
    row = stored + r * stored_stride
    values = tl.load(row + first + index, mask=first + index < vocab_size, other=float("-inf"))
    weights = weight_of(values.to(tl.float32), peak, inverse)
    inside = pick(weights, tl.load(noise + level_stride), index)
    token = tl.where(inside < 0, vocab_size - 1, first + inside)
    tl.store(tokens + r, token)
    tl.store(log_sum_exps + r, log_sum_exp)
    tl.store(log_qs + r, tl.div_rn(tl.load(row + token).to(tl.float32), value) - log_sum_exp)


def draw_step(
    base: Tensor,
    correction: tuple[Tensor, Tensor] | None,
    sampling: Sampling,
    uniforms: Tensor,
    *,
    block: int = BLOCK,
) -> tuple[Tensor, Drawn]:
    """``reference.draw_step``: the stored rows, and what is drawn from them.

    ``block`` is part of the random-stream contract; only tests use another.
    """
    num, vocab_size = base.shape
    tile = block if correction is None else min(TILE, block)
    num_tiles = triton.cdiv(vocab_size, tile)
    temperature = sampling.temperature.contiguous()
    stats = _room(base, num * num_tiles, torch.float32, torch.float32, torch.int32)
    drawn = _room(base, num, torch.int64, torch.float32, torch.float32)
    if num == 0:
        return base, Drawn(*drawn)
    with torch.accelerator.device_index(base.device.index):
        if correction is None:
            stored = base if base.stride(-1) == 1 else base.contiguous()
            _block_stats(stored, temperature, stats, num_tiles, block)
        else:
            stored = _corrected(base, *correction, temperature, stats, tile)
        draw_stored[(num,)](
            stored, stored.stride(0), temperature, uniforms, *uniforms.stride(), *stats, *drawn, vocab_size,
            num_tiles, block=block, parts=max(2, triton.next_power_of_2(triton.cdiv(vocab_size, block))),
            tiles=block // tile, **OPTIONS,
        )  # fmt: skip
    return stored, Drawn(*drawn)


def _corrected(
    base: Tensor, latent: Tensor, weight: Tensor, temperature: Tensor, stats: list[Tensor], tile: int
) -> Tensor:
    """The stored rows ``[R, V]``, in the type that torch gives the sum; fills in ``stats``."""
    num, vocab_size = base.shape
    base, latent, weight = (v if v.stride(-1) == 1 else v.contiguous() for v in (base, latent, weight))
    stored = base.new_empty(base.shape, dtype=torch.promote_types(base.dtype, latent.dtype))
    num_tiles = triton.cdiv(vocab_size, tile)
    correct_rows[(triton.cdiv(num, ROWS), num_tiles)](
        base, base.stride(0), latent, latent.stride(0), weight, weight.stride(0), temperature, stored,
        stored.stride(0), *stats, num, vocab_size, latent.shape[1], num_tiles,
        rows=ROWS, tile=tile, depth=DEPTH, **OPTIONS,
    )  # fmt: skip
    return stored


def _block_stats(
    stored: Tensor, temperature: Tensor, stats: list[Tensor], num_tiles: int, block: int
) -> None:
    """Statistics of rows that need no correction: each is a request's only step."""
    num, vocab_size = stored.shape
    starts = torch.arange(num, device=stored.device)
    block_stats[(num * num_tiles,)](
        stored, stored.stride(0), temperature, starts, starts, temperature, *stats, num, 1, num_tiles,
        vocab_size, truncated=False, block=block, **OPTIONS,
    )  # fmt: skip


def _room(like: Tensor, size: int, *dtypes: torch.dtype) -> list[Any]:
    return [torch.empty(size, dtype=dtype, device=like.device) for dtype in dtypes]
