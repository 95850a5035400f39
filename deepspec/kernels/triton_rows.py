"""Triton code that several kernels share, and the two kernels that read whole rows of the vocabulary.

A *cell* is a (request, step) pair with steps 0..G; it lives while its step is at most the request's length.
Whatever ids, lengths and starts say, they are held inside their arrays before anything is loaded. Values are
upcast to float32 as they are loaded. Nothing is reduced across rows, so no row depends on its batch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_length(lengths, request, num_steps):
    """The request's length, held in 0..G."""
    return tl.minimum(tl.maximum(tl.load(lengths + request), 0), num_steps - 1)


@triton.jit
def packed_row(starts, request, step, num_rows):
    """The packed row of a cell, held inside the array; int64."""
    return tl.minimum(tl.maximum(tl.load(starts + request) + step, 0), num_rows - 1)


@triton.jit
def load_temperature(temperature, request):
    """The request's temperature, 1 in place of 0; its inverse; and whether it was 0."""
    given = tl.load(temperature + request).to(tl.float32)
    greedy = given == 0
    value = tl.where(greedy, 1.0, given)
    return value, 1.0 / value, greedy


@triton.jit
def load_values(row, tokens, mask, cutoffs, cell, truncated: tl.constexpr):
    """Upcast logits of a row, -inf under the cell's cut-off and where masked."""
    values = tl.load(row + tokens, mask=mask, other=float("-inf")).to(tl.float32)
    if truncated:
        values = tl.where(values >= tl.load(cutoffs + cell), values, float("-inf"))
    return values


@triton.jit
def weight_of(values, peak, inverse):
    """exp of the distance to the peak, after temperature; 0 at -inf, whatever the peak."""
    return tl.where(values > float("-inf"), tl.exp((values - peak) * inverse), 0.0)


@triton.jit
def below_one(uniform):
    """A uniform in float32, held below 1 where rounding would reach it."""
    return tl.minimum(uniform.to(tl.float32), 0.999999940395355224609375)  # 1 - 2**-24


@triton.jit
def pick(weights, uniform, index):
    """The first index whose cumulative weight exceeds ``uniform`` of the total; -1 where all weights are 0.

    Never an index of weight 0, even where a parallel sum rounds otherwise than a sequential one.
    """
    cumulative = tl.cumsum(weights, 0)
    point = below_one(uniform) * tl.max(cumulative, 0)
    last = tl.max(tl.where(weights > 0, index, -1), 0)
    return tl.min(tl.where((cumulative > point) & (weights > 0), index, last), 0)


@triton.jit
def block_stats(
    logits, row_stride, cutoffs, starts, lengths, temperature, peaks, totals, bests,
    num_rows, num_steps, num_blocks, vocab_size, truncated: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Each block of each living cell: its largest value, the sum of weights under it, the largest's token."""
    program = tl.program_id(0)
    cell, part = program // num_blocks, program % num_blocks
    request, step = (cell // num_steps).to(tl.int64), cell % num_steps
    if step > load_length(lengths, request, num_steps):
        return
    _, inverse, _ = load_temperature(temperature, request)
    row = packed_row(starts, request, step, num_rows)
    tokens = part * block + tl.arange(0, block)
    values = load_values(logits + row * row_stride, tokens, tokens < vocab_size, cutoffs, cell, truncated)
    peak, place = tl.max(values, axis=0, return_indices=True)
    tl.store(peaks + program, peak)
    tl.store(totals + program, tl.sum(weight_of(values, peak, inverse), axis=0))
    tl.store(bests + program, tl.minimum(part * block + place, vocab_size - 1))


@triton.jit
def ordered_key(values):
    """uint32 keys in the order of the floats."""
    bits = values.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) == 1, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


@triton.jit
def measure(row, floor, peak, inverse, vocab_size, by_mass: tl.constexpr, tile: tl.constexpr):
    """How many tokens (or how much weight) of a row have keys of at least ``floor``."""
    found = 0.0
    for begin in range(0, vocab_size, tile):
        tokens = begin + tl.arange(0, tile)
        values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
        inside = (ordered_key(values) >= floor) & (tokens < vocab_size)
        if by_mass:
            found += tl.sum(tl.where(inside, weight_of(values, peak, inverse), 0.0), axis=0)
        else:
            found += tl.sum(tl.where(inside, 1.0, 0.0), axis=0)  # exact: V is under 2**24
    return found


@triton.jit
def largest_floor(
    row, above, wanted, peak, inverse, vocab_size,
    by_mass: tl.constexpr, bits: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The largest key, at least ``above``, from which on a row holds ``wanted``: a bisection bit by bit.

    ``bits`` leading bits decide: all 32 for float32, fewer for types whose values fill less of it.
    """
    key = above * 0
    for step in range(bits):
        candidate = key | (above * 0 + 1 << (31 - step))
        held = measure(row, tl.maximum(candidate, above), peak, inverse, vocab_size, by_mass, tile)
        key = tl.where(held >= wanted, candidate, key)
    return tl.maximum(key, above)


@triton.jit
def cut_offs(
    logits, row_stride, starts, lengths, temperature, top_k, top_p, min_p, cutoffs,
    num_rows, num_steps, vocab_size,
    has_top_k: tl.constexpr, has_top_p: tl.constexpr, has_min_p: tl.constexpr,
    bits: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Each living cell's cut-off: top-k, then top-p of what is left, then min-p; ties are kept."""
    cell = tl.program_id(0)
    request, step = (cell // num_steps).to(tl.int64), cell % num_steps
    if step > load_length(lengths, request, num_steps):
        return
    value, inverse, _ = load_temperature(temperature, request)
    row = logits + packed_row(starts, request, step, num_rows) * row_stride
    peak = float("-inf")
    for begin in range(0, vocab_size, tile):
        tokens = begin + tl.arange(0, tile)
        values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
        peak = tl.maximum(peak, tl.max(values, axis=0))
    key = ordered_key(peak) * 0
    if has_top_k:
        wanted = tl.minimum(tl.maximum(tl.load(top_k + request), 1), vocab_size)
        if wanted < vocab_size:
            key = largest_floor(row, key, wanted.to(tl.float32), peak, inverse, vocab_size, False, bits, tile)
    if has_top_p:
        share = tl.load(top_p + request).to(tl.float32)
        if share < 1:
            mass = share * measure(row, key, peak, inverse, vocab_size, True, tile)
            key = largest_floor(row, key, mass, peak, inverse, vocab_size, True, bits, tile)
    bits_kept = tl.where((key >> 31) == 1, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    # Keys up to that of -inf (0x007FFFFF) keep everything; below it they are no number's.
    floor = tl.where(key > 0x007FFFFF, bits_kept.to(tl.float32, bitcast=True), float("-inf"))
    if has_min_p:
        floor = tl.maximum(floor, peak + value * tl.log(tl.load(min_p + request).to(tl.float32)))
    tl.store(cutoffs + cell, tl.minimum(floor, peak))
