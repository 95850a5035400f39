"""Triton kernels that decide: accepted prefix, residual masses, closing token, and the delta rule's draws.

They read the partial results of ``triton_rows`` and, of the vocabulary, only the rows that close a round.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepspec.kernels.triton_rows import (
    below_one,
    load_length,
    load_temperature,
    load_values,
    packed_row,
    pick,
    weight_of,
)


@triton.jit
def probability(values, peak, log_total, inverse):
    """p of upcast, cut logits; 0 at -inf."""
    return tl.where(values > float("-inf"), tl.exp((values - peak) * inverse - log_total), 0.0)


@triton.jit
def accept_drafts(
    logits, row_stride, cutoffs, starts, lengths, temperature, drafted, log_q,
    uniforms, request_stride, step_stride,
    peaks, totals, bests, row_peaks, row_logs, row_bests, log_runs, needed, accepted,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, blockwise: tl.constexpr, steps: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each request: its rows' log-sum-exp as (peak, log of the sum under it), and how many drafts are kept.

    Under the block rule: log P of each row, which rows need their residual mass, and what is kept without it.
    """
    request = tl.program_id(0).to(tl.int64)
    length = load_length(lengths, request, num_steps)
    _, inverse, greedy = load_temperature(temperature, request)
    step, part = tl.arange(0, steps), tl.arange(0, parts)
    cell = request * num_steps + step
    live = step <= length
    grid = cell[:, None] * num_blocks + part[None, :]
    held = live[:, None] & (part < num_blocks)[None, :]
    peak = tl.load(peaks + grid, mask=held, other=float("-inf"))
    total = tl.load(totals + grid, mask=held, other=0.0)
    best = tl.load(bests + grid, mask=held, other=vocab_size - 1)
    row_peak = tl.max(peak, axis=1)
    row_log = tl.log(tl.sum(total * weight_of(peak, row_peak[:, None], inverse), axis=1))
    row_best = tl.min(tl.where(peak == row_peak[:, None], best, vocab_size - 1), axis=1)
    tl.store(row_peaks + cell, row_peak, mask=live)
    tl.store(row_logs + cell, row_log, mask=live)
    tl.store(row_bests + cell, row_best, mask=live)
    inside = step < length
    place = request * (num_steps - 1) + step
    token = tl.load(drafted + place, mask=inside, other=-1)
    known = (token >= 0) & (token < vocab_size)
    row = packed_row(starts, request, step, num_rows)
    value = tl.load(logits + row * row_stride + token, mask=known, other=float("-inf")).to(tl.float32)
    if truncated:
        value = tl.where(value >= tl.load(cutoffs + cell, mask=live, other=0.0), value, float("-inf"))
    log_p = tl.where(value > float("-inf"), (value - row_peak) * inverse - row_log, float("-inf"))
    log_p = tl.where(greedy, tl.where(token == row_best, 0.0, float("-inf")), log_p)
    drawn_with = tl.load(log_q + place, mask=inside, other=0.0).to(tl.float32)
    uniform = below_one(
        tl.load(uniforms + request * request_stride + step * step_stride, mask=inside, other=0.0)
    )
    if blockwise:
        # P_i = min(1, P_{i-1} p/q): the sum of the log ratios, less its largest value so far, 0 included.
        run = tl.cumsum(tl.where(inside, log_p - drawn_with, 0.0), 0)
        highest = tl.max(tl.where(step[None, :] <= step[:, None], run[None, :], 0.0), axis=1)
        log_run = run - tl.maximum(highest, 0.0)
        passed = inside & (uniform < tl.exp(log_run))
        sure = passed & ((log_run == 0) | (step + 1 == length))
        tl.store(accepted + request, tl.max(tl.where(sure, step + 1, 0), axis=0).to(tl.int64))
        tl.store(log_runs + cell + 1, log_run, mask=inside)
        tl.store(needed + cell + 1, (passed & (sure == 0)).to(tl.int32), mask=inside)
        tl.store(log_runs + request * num_steps, 0.0)
        tl.store(needed + request * num_steps, 0)
    else:
        kept = uniform * tl.exp(drawn_with) < tl.exp(log_p)
        tl.store(accepted + request, tl.min(tl.where(inside & (kept == 0), step, length), axis=0))


@triton.jit
def residual_tile(
    logits, row_stride, cutoffs, starts, draft, draft_stride, draft_step_stride, drafted, log_sum_exp,
    row_peaks, row_logs, log_runs, request, step, tokens, temperature, inverse,
    num_rows, num_steps, vocab_size,
    truncated: tl.constexpr, one_hot: tl.constexpr, blockwise: tl.constexpr,
):  # fmt: skip
    """(p - q)+ of some tokens of a drafted row, (P p - q)+ under the block rule.

    q is that of the stored row as it was sampled, or one-hot at the drafted token.
    """
    cell, place = request * num_steps + step, request * (num_steps - 1) + step
    row = logits + packed_row(starts, request, step, num_rows) * row_stride
    values = load_values(row, tokens, tokens < vocab_size, cutoffs, cell, truncated)
    log_total = tl.load(row_logs + cell)
    if blockwise:
        log_total -= tl.load(log_runs + cell)
    p = probability(values, tl.load(row_peaks + cell), log_total, inverse)
    if one_hot:
        q = tl.where(tokens == tl.load(drafted + place), 1.0, 0.0)
    else:
        stored = draft + request * draft_stride + step * draft_step_stride + tokens
        stored = tl.load(stored, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
        q = tl.exp(tl.div_rn(stored, temperature) - tl.load(log_sum_exp + place).to(tl.float32))
    return tl.maximum(p - q, 0.0)


@triton.jit
def residual_masses(
    logits, row_stride, cutoffs, starts, lengths, temperature,
    draft, draft_stride, draft_step_stride, drafted, log_sum_exp,
    row_peaks, row_logs, log_runs, needed, accepted, masses, num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, one_hot: tl.constexpr, blockwise: tl.constexpr, whole_round: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Residual mass of each block: of the row that refused its draft, or (``whole_round``) of all needed."""
    program = tl.program_id(0)
    owner, part = (program // num_blocks).to(tl.int64), program % num_blocks
    if whole_round:
        request, step = owner // num_steps, owner % num_steps
        if step >= load_length(lengths, request, num_steps):
            return
        if tl.load(needed + owner) == 0:
            return
    else:
        request, step = owner, tl.load(accepted + owner)
        if step >= load_length(lengths, request, num_steps):
            return
    value, inverse, greedy = load_temperature(temperature, request)
    if greedy:
        return
    left = residual_tile(
        logits, row_stride, cutoffs, starts, draft, draft_stride, draft_step_stride, drafted, log_sum_exp,
        row_peaks, row_logs, log_runs, request, step, part * block + tl.arange(0, block), value, inverse,
        num_rows, num_steps, vocab_size, truncated, one_hot, blockwise,
    )  # fmt: skip
    tl.store(masses + program, tl.sum(left, axis=0))


@triton.jit
def accept_block(
    lengths, uniforms, request_stride, step_stride, log_runs, needed, masses, accepted, num_steps, num_blocks,
    steps: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each request: the longest prefix that passes, now that the masses Z of the needed rows are known."""
    request = tl.program_id(0).to(tl.int64)
    step, part = tl.arange(0, steps), tl.arange(0, parts)
    cell = request * num_steps + step
    asked = (step > 0) & (step < load_length(lengths, request, num_steps))
    asked = asked & (tl.load(needed + cell, mask=asked, other=0) != 0)
    grid = cell[:, None] * num_blocks + part[None, :]
    mass = tl.load(masses + grid, mask=asked[:, None] & (part < num_blocks)[None, :], other=0.0)
    z = tl.sum(mass, axis=1)
    left = 1.0 - tl.exp(tl.load(log_runs + cell, mask=asked, other=0.0))
    noise = uniforms + request * request_stride + (step - 1) * step_stride
    passed = asked & (below_one(tl.load(noise, mask=asked, other=0.0)) * (z + left) < z)
    longest = tl.max(tl.where(passed, step, 0), axis=0)
    tl.store(accepted + request, tl.maximum(tl.load(accepted + request), longest))


@triton.jit
def closing_token(
    logits, row_stride, cutoffs, starts, lengths, temperature,
    draft, draft_stride, draft_step_stride, drafted, log_sum_exp, uniforms, request_stride, level_stride,
    peaks, totals, row_peaks, row_logs, row_bests, log_runs, accepted, masses, bonus,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, one_hot: tl.constexpr, blockwise: tl.constexpr,
    block: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each request: a block by its mass, then a token inside it; the row's largest where nothing has mass."""
    request = tl.program_id(0).to(tl.int64)
    value, inverse, greedy = load_temperature(temperature, request)
    step = tl.load(accepted + request)
    cell = request * num_steps + step
    best = tl.load(row_bests + cell)
    if greedy:
        tl.store(bonus + request, best)
        return
    refused = step < load_length(lengths, request, num_steps)
    part, index = tl.arange(0, parts), tl.arange(0, block)
    held = part < num_blocks
    peak = tl.load(row_peaks + cell)
    if refused:
        mass = tl.load(masses + request * num_blocks + part, mask=held, other=0.0)
    else:
        block_peak = tl.load(peaks + cell * num_blocks + part, mask=held, other=float("-inf"))
        mass = tl.load(totals + cell * num_blocks + part, mask=held, other=0.0)
        mass = mass * weight_of(block_peak, peak, inverse)
    noise = uniforms + request * request_stride
    first = tl.maximum(pick(mass, tl.load(noise), part), 0) * block
    if refused:
        weights = residual_tile(
            logits, row_stride, cutoffs, starts, draft, draft_stride, draft_step_stride, drafted, log_sum_exp,
            row_peaks, row_logs, log_runs, request, step, first + index, value, inverse,
            num_rows, num_steps, vocab_size, truncated, one_hot, blockwise,
        )  # fmt: skip
    else:
        row = logits + packed_row(starts, request, step, num_rows) * row_stride
        values = load_values(row, first + index, first + index < vocab_size, cutoffs, cell, truncated)
        weights = weight_of(values, peak, inverse)
    inside = pick(weights, tl.load(noise + level_stride), index)
    tl.store(bonus + request, tl.where(inside < 0, best, first + inside))


@triton.jit
def draw_rows(
    logits, row_stride, cutoffs, starts, lengths, temperature,
    uniforms, request_stride, step_stride, level_stride, peaks, totals, bests, drawn,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, block: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each living cell: a token of p, by block and then inside it; the largest under temperature 0."""
    cell = tl.program_id(0)
    request, step = (cell // num_steps).to(tl.int64), cell % num_steps
    if step > load_length(lengths, request, num_steps):
        return
    _, inverse, greedy = load_temperature(temperature, request)
    part = tl.arange(0, parts)
    held = part < num_blocks
    block_peak = tl.load(peaks + cell * num_blocks + part, mask=held, other=float("-inf"))
    best = tl.load(bests + cell * num_blocks + part, mask=held, other=vocab_size - 1)
    peak = tl.max(block_peak, axis=0)
    best = tl.min(tl.where(block_peak == peak, best, vocab_size - 1), axis=0)
    if greedy:
        tl.store(drawn + cell, best)
        return
    mass = tl.load(totals + cell * num_blocks + part, mask=held, other=0.0)
    noise = uniforms + request * request_stride + step * step_stride
    first = tl.maximum(pick(mass * weight_of(block_peak, peak, inverse), tl.load(noise), part), 0) * block
    index = tl.arange(0, block)
    row = logits + packed_row(starts, request, step, num_rows) * row_stride
    values = load_values(row, first + index, first + index < vocab_size, cutoffs, cell, truncated)
    inside = pick(weight_of(values, peak, inverse), tl.load(noise + level_stride), index)
    tl.store(drawn + cell, tl.where(inside < 0, best, first + inside))


@triton.jit
def match_draws(lengths, drafted, drawn, accepted, bonus, num_steps, steps: tl.constexpr):
    """Each request: drafts kept while they equal the draws, and the first draw that differs."""
    request = tl.program_id(0).to(tl.int64)
    length = load_length(lengths, request, num_steps)
    step = tl.arange(0, steps)
    inside = step < length
    token = tl.load(drafted + request * (num_steps - 1) + step, mask=inside, other=-1)
    draw = tl.load(drawn + request * num_steps + step, mask=inside, other=-1)
    kept = tl.min(tl.where(inside & (token != draw), step, length), axis=0)
    tl.store(accepted + request, kept)
    tl.store(bonus + request, tl.load(drawn + request * num_steps + kept))
