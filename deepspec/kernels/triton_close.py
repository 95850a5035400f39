"""Triton kernels that decide: accepted prefix, residual masses, closing token, and the delta rule's draws.

They read the partial results of ``triton_rows`` and, of the vocabulary, only the rows that close a round.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepspec.kernels.triton_rows import load_temperature, load_values, locate, pick, weight_of


@triton.jit
def probability(values, peak, log_total, inverse):
    """p of upcast, cut logits; 0 at -inf."""
    return tl.where(values > float("-inf"), tl.exp((values - peak) * inverse - log_total), 0.0)


@triton.jit
def residual(p, tokens, draft, draft_row, drafted, log_sum_exp, temperature, vocab_size, one_hot: tl.constexpr):
    """(p - q)+ of the same tokens; q from the stored row as it was sampled, or one-hot at ``drafted``."""
    if one_hot:
        q = tl.where(tokens == drafted, 1.0, 0.0)
    else:
        stored = tl.load(draft + draft_row + tokens, mask=tokens < vocab_size, other=float("-inf"))
        q = tl.exp(tl.div_rn(stored.to(tl.float32), temperature) - log_sum_exp)
    return tl.maximum(p - q, 0.0)


@triton.jit
def accept_tokens(
    logits, row_stride, cutoffs, starts, lengths, temperature, drafted, log_q, uniforms, request_stride, step_stride,
    peaks, totals, bests, row_peaks, row_logs, row_bests, accepted,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, steps: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each request: its rows' log-sum-exp as (peak, log of the sum under it), and how many drafts the token rule keeps."""
    request, _, length, _ = locate(tl.program_id(0) * num_steps, starts, lengths, num_steps, num_rows)
    _, inverse, greedy = load_temperature(temperature, request)
    step, part = tl.arange(0, steps), tl.arange(0, parts)
    cell = request * num_steps + step
    live = step <= length
    grid = cell[:, None] * num_blocks + part[None, :]
    held = live[:, None] & (part < num_blocks)[None, :]
    peak = tl.load(peaks + grid, mask=held, other=float("-inf"))
    total = tl.load(totals + grid, mask=held, other=0.0)
    best = tl.load(bests + grid, mask=held, other=0)
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
    row = tl.minimum(tl.maximum(tl.load(starts + request) + step, 0), num_rows - 1)
    value = tl.load(logits + row * row_stride + token, mask=known, other=float("-inf")).to(tl.float32)
    if truncated:
        value = tl.where(value >= tl.load(cutoffs + cell, mask=live, other=0.0), value, float("-inf"))
    p = tl.where(greedy, tl.where(token == row_best, 1.0, 0.0), probability(value, row_peak, row_log, inverse))
    q = tl.exp(tl.load(log_q + place, mask=inside, other=0.0).to(tl.float32))
    uniform = tl.load(uniforms + request * request_stride + step * step_stride, mask=inside, other=0.0)
    uniform = tl.minimum(uniform.to(tl.float32), 0.999999940395355224609375)  # 1 - 2**-24
    kept = uniform * q < p
    tl.store(accepted + request, tl.min(tl.where(inside & (kept == 0), step, length), axis=0))


@triton.jit
def residual_masses(
    logits, row_stride, cutoffs, starts, lengths, temperature,
    draft, draft_stride, draft_step_stride, drafted, log_sum_exp, row_peaks, row_logs, accepted, masses,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, one_hot: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Each block's residual mass, of the row that refused its draft; nothing where none did."""
    program = tl.program_id(0)
    part = program % num_blocks
    request, _, length, _ = locate(program // num_blocks * num_steps, starts, lengths, num_steps, num_rows)
    value, inverse, greedy = load_temperature(temperature, request)
    step = tl.load(accepted + request)
    if greedy | (step >= length):
        return
    cell = request * num_steps + step
    row = tl.minimum(tl.maximum(tl.load(starts + request) + step, 0), num_rows - 1)
    tokens = part * block + tl.arange(0, block)
    values = load_values(logits + row * row_stride, tokens, tokens < vocab_size, cutoffs, cell, truncated)
    p = probability(values, tl.load(row_peaks + cell), tl.load(row_logs + cell), inverse)
    place = request * (num_steps - 1) + step
    left = residual(
        p, tokens, draft, request * draft_stride + step * draft_step_stride,
        tl.load(drafted + place), tl.load(log_sum_exp + place).to(tl.float32), value, vocab_size, one_hot,
    )  # fmt: skip
    tl.store(masses + program, tl.sum(left, axis=0))


@triton.jit
def closing_token(
    logits, row_stride, cutoffs, starts, lengths, temperature,
    draft, draft_stride, draft_step_stride, drafted, log_sum_exp, uniforms, request_stride, level_stride,
    peaks, totals, row_peaks, row_logs, row_bests, accepted, masses, bonus,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, one_hot: tl.constexpr, block: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each request: a block by its mass, then a token inside it; the row's largest where nothing has mass."""
    request, _, length, _ = locate(tl.program_id(0) * num_steps, starts, lengths, num_steps, num_rows)
    value, inverse, greedy = load_temperature(temperature, request)
    step = tl.load(accepted + request)
    cell = request * num_steps + step
    best = tl.load(row_bests + cell)
    if greedy:
        tl.store(bonus + request, best)
        return
    refused = step < length
    part = tl.arange(0, parts)
    held = part < num_blocks
    peak, log_total = tl.load(row_peaks + cell), tl.load(row_logs + cell)
    if refused:
        mass = tl.load(masses + request * num_blocks + part, mask=held, other=0.0)
    else:
        block_peak = tl.load(peaks + cell * num_blocks + part, mask=held, other=float("-inf"))
        mass = tl.load(totals + cell * num_blocks + part, mask=held, other=0.0)
        mass = mass * weight_of(block_peak, peak, inverse)
    noise = uniforms + request * request_stride
    chosen = tl.maximum(pick(mass, tl.load(noise), part), 0)
    row = tl.minimum(tl.maximum(tl.load(starts + request) + step, 0), num_rows - 1)
    index = tl.arange(0, block)
    tokens = chosen * block + index
    values = load_values(logits + row * row_stride, tokens, tokens < vocab_size, cutoffs, cell, truncated)
    weights = probability(values, peak, log_total, inverse)
    if refused:
        place = request * (num_steps - 1) + step
        weights = residual(
            weights, tokens, draft, request * draft_stride + step * draft_step_stride,
            tl.load(drafted + place), tl.load(log_sum_exp + place).to(tl.float32), value, vocab_size, one_hot,
        )  # fmt: skip
    inside = pick(weights, tl.load(noise + level_stride), index)
    tl.store(bonus + request, tl.where(inside < 0, best, chosen * block + inside))


@triton.jit
def draw_rows(
    logits, row_stride, cutoffs, starts, lengths, temperature,
    uniforms, request_stride, step_stride, level_stride, peaks, totals, bests, drawn,
    num_rows, num_steps, num_blocks, vocab_size,
    truncated: tl.constexpr, block: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each living cell: a token of p, by block and then inside it; the largest under temperature 0."""
    cell = tl.program_id(0)
    request, step, length, row = locate(cell, starts, lengths, num_steps, num_rows)
    if step > length:
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
    chosen = tl.maximum(pick(mass * weight_of(block_peak, peak, inverse), tl.load(noise), part), 0)
    index = tl.arange(0, block)
    tokens = chosen * block + index
    values = load_values(logits + row * row_stride, tokens, tokens < vocab_size, cutoffs, cell, truncated)
    inside = pick(weight_of(values, peak, inverse), tl.load(noise + level_stride), index)
    tl.store(drawn + cell, tl.where(inside < 0, best, chosen * block + inside))


@triton.jit
def match_draws(lengths, drafted, drawn, accepted, bonus, num_steps, steps: tl.constexpr):
    """Each request: drafts kept while they equal the draws, and the first draw that differs."""
    request = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.maximum(tl.load(lengths + request), 0), num_steps - 1)
    step = tl.arange(0, steps)
    inside = step < length
    token = tl.load(drafted + request * (num_steps - 1) + step, mask=inside, other=-1)
    draw = tl.load(drawn + request * num_steps + step, mask=inside, other=-1)
    kept = tl.min(tl.where(inside & (token != draw), step, length), axis=0)
    tl.store(accepted + request, kept)
    tl.store(bonus + request, tl.load(drawn + request * num_steps + kept))
