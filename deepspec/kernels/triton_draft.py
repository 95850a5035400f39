"""Draws draft tokens from stored rows on the device; see ``deepspec.sampling.sampler`` for what it computes.

Two launches a drafted position: every block's largest value and mass, which read the rows once, then the
token, which reads one block. A head's correction is added by the product that makes the rows (torch's
``addmm`` writes them once): fused with the first launch it would save one reading of what was just written,
but not the product itself, whose tiles are the work.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.kernels.triton_rows import (
    block_stats,
    load_temperature,
    pick,
    weight_of,
)
from deepspec.kernels.triton_rules import ENABLE_FP_FUSION, contiguous_rows, num_warps
from deepspec.sampling import Drawn
from deepspec.sampling.categorical import BLOCK
from deepspec.types import Sampling


@triton.jit
def draw_drafts(
    logits, row_stride, temperature, uniforms, uniform_stride, level_stride, peaks, totals, bests,
    tokens, log_sum_exps, log_qs, num_blocks, vocab_size, block: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Each row: a token by block and then inside it, the row's log-sum-exp, and the token's log q."""
    row = tl.program_id(0).to(tl.int64)
    value, inverse, greedy = load_temperature(temperature, row)
    part = tl.arange(0, parts)
    held = part < num_blocks
    block_peak = tl.load(peaks + row * num_blocks + part, mask=held, other=float("-inf"))
    best = tl.load(bests + row * num_blocks + part, mask=held, other=vocab_size - 1)
    peak = tl.max(block_peak, axis=0)
    best = tl.min(tl.where(block_peak == peak, best, vocab_size - 1), axis=0)
    if greedy:
        tl.store(tokens + row, best.to(tl.int64))
        tl.store(log_sum_exps + row, 0.0)
        tl.store(log_qs + row, 0.0)
        return
    mass = tl.load(totals + row * num_blocks + part, mask=held, other=0.0)
    mass = mass * weight_of(block_peak, peak, inverse)
    log_sum_exp = tl.div_rn(peak, value) + tl.log(tl.sum(mass, axis=0))
    noise = uniforms + row * uniform_stride
    first = tl.maximum(pick(mass, tl.load(noise), part), 0) * block
    index = tl.arange(0, block)
    inside = first + index < vocab_size
    values = tl.load(logits + row * row_stride + first + index, mask=inside, other=float("-inf")).to(
        tl.float32
    )
    place = pick(weight_of(values, peak, inverse), tl.load(noise + level_stride), index)
    token = tl.where(place < 0, best, first + place)
    chosen = tl.load(logits + row * row_stride + token).to(tl.float32)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(log_sum_exps + row, log_sum_exp)
    tl.store(log_qs + row, tl.div_rn(chosen, value) - log_sum_exp)


def draw_draft(logits: Tensor, sampling: Sampling, uniforms: Tensor, *, block: int = BLOCK) -> Drawn:
    """``sampler.draw_draft`` of rows ``[R, V]`` and uniforms ``[R, 2]`` in two launches.

    ``block`` is part of the random-stream contract; only tests use another.
    """
    rows = contiguous_rows(logits)
    num, vocab_size = rows.shape
    num_blocks, device = triton.cdiv(vocab_size, block), rows.device
    peaks, totals = (torch.empty(num * num_blocks, device=device) for _ in range(2))
    bests = torch.empty(num * num_blocks, dtype=torch.int32, device=device)
    tokens = torch.empty(num, dtype=torch.int64, device=device)
    log_sum_exp, log_q = (torch.empty(num, device=device) for _ in range(2))
    places, nothing = torch.arange(num, device=device), torch.zeros(num, dtype=torch.int64, device=device)
    temperature, noise = sampling.temperature.contiguous(), uniforms
    options = {"enable_fp_fusion": ENABLE_FP_FUSION, "block": block}
    if num:
        with torch.accelerator.device_index(device.index):
            block_stats[(num * num_blocks,)](
                rows, rows.stride(0), peaks, places, nothing, temperature, peaks, totals, bests,
                num, 1, num_blocks, vocab_size,
                truncated=False, num_warps=num_warps(block_stats), **options,
            )  # fmt: skip
            draw_drafts[(num,)](
                rows, rows.stride(0), temperature, noise, noise.stride(0), noise.stride(1),
                peaks, totals, bests, tokens, log_sum_exp, log_q, num_blocks, vocab_size,
                parts=max(2, triton.next_power_of_2(num_blocks)), num_warps=num_warps(draw_drafts), **options,
            )  # fmt: skip
    return Drawn(tokens=tokens, log_sum_exp=log_sum_exp, log_q=log_q)
