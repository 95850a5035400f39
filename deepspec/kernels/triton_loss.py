"""The training objective's row statistics and gradient in Triton; :mod:`loss_reference` is the specification.

A program of ``loss_statistics`` owns a row and reads it twice, the second time from the cache if that holds
it: the distance of q and p needs both log-sum-exps. ``loss_gradient`` reads each block once and writes the
gradient over the logits. Values are upcast to float32 as they are loaded, and sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.kernels.loss_reference import RowGradients, RowStatistics, TargetLogits
from deepspec.kernels.triton_rows import weight_of
from deepspec.kernels.triton_rules import ENABLE_FP_FUSION

#: Warps that a program runs on.
NUM_WARPS = 8
#: Tokens of a gradient's program, and those that a program of the statistics works on at once: four sums of
#: each stay in registers.
_BLOCK = 4096
_TILE = 2048


@triton.jit
def row_normaliser(row, vocab_size, tile: tl.constexpr):
    """log sum exp of one row; -inf where it is empty."""
    peak = float("-inf")
    total = 0.0
    for begin in range(0, vocab_size, tile):
        tokens = begin + tl.arange(0, tile)
        values = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(values, axis=0))
        total = total * weight_of(peak, higher, 1.0) + tl.sum(weight_of(values, higher, 1.0), axis=0)
        peak = higher
    return peak + tl.log(total)


@triton.jit
def loss_normaliser(logits, row_stride, normaliser, vocab_size, tile: tl.constexpr):
    """log sum exp of each row."""
    index = tl.program_id(0).to(tl.int64)
    tl.store(normaliser + index, row_normaliser(logits + index * row_stride, vocab_size, tile))


@triton.jit
def loss_statistics(
    logits, row_stride, labels, target, target_stride, target_normaliser,
    normaliser, log_label, distance, cross_entropy, slope, mass,
    vocab_size, has_target: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The fields of RowStatistics, one row a program."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * row_stride
    draft_log_sum = row_normaliser(row, vocab_size, tile)
    label = tl.load(labels + index)
    column = tl.minimum(tl.maximum(label, 0), vocab_size - 1)
    picked = tl.load(row + column).to(tl.float32) - draft_log_sum
    tl.store(normaliser + index, draft_log_sum)
    tl.store(log_label + index, tl.where(label >= 0, picked, float("-inf")))
    if has_target:
        target_row = target + index * target_stride
        target_log_sum = tl.load(target_normaliser + index).to(tl.float32)
        sums = tl.zeros([tile], tl.float32)
        masses, products, slopes = sums, sums, sums
        for begin in range(0, vocab_size, tile):
            tokens = begin + tl.arange(0, tile)
            inside = tokens < vocab_size
            log_q = tl.load(row + tokens, mask=inside, other=float("-inf")).to(tl.float32) - draft_log_sum
            log_p = (
                tl.load(target_row + tokens, mask=inside, other=float("-inf")).to(tl.float32) - target_log_sum
            )
            q, p = tl.exp(log_q), tl.exp(log_p)
            sums += tl.abs(q - p)
            masses += p
            products += p * tl.where(inside, log_q, 0.0)
            slopes += tl.where(q > p, q, tl.where(q < p, -q, 0.0))
        tl.store(distance + index, tl.sum(sums, axis=0))
        tl.store(mass + index, tl.sum(masses, axis=0))
        tl.store(cross_entropy + index, -tl.sum(products, axis=0))
        tl.store(slope + index, tl.sum(slopes, axis=0))


@triton.jit
def loss_gradient(
    logits, row_stride, labels, target, target_stride, target_normaliser, normaliser,
    by_label, by_distance, by_cross_entropy, factor, dense, dense_stride, tanh, tanh_stride,
    num_blocks, vocab_size,
    has_target: tl.constexpr, has_dense: tl.constexpr, has_tanh: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of a row over its logits, and over ``tanh`` that of what was capped."""
    program = tl.program_id(0)
    index, part = (program // num_blocks).to(tl.int64), program % num_blocks
    tokens = part * block + tl.arange(0, block)
    inside = tokens < vocab_size
    places = logits + index * row_stride + tokens
    values = tl.load(places, mask=inside, other=float("-inf")).to(tl.float32)
    q = tl.exp(values - tl.load(normaliser + index))
    gradient = q * tl.load(factor + index)
    if has_target:
        scores = tl.load(target + index * target_stride + tokens, mask=inside, other=float("-inf")).to(
            tl.float32
        )
        p = tl.exp(scores - tl.load(target_normaliser + index).to(tl.float32))
        signed = tl.where(q > p, q, tl.where(q < p, -q, 0.0))
        gradient += tl.load(by_distance + index) * signed - tl.load(by_cross_entropy + index) * p
    gradient += tl.where(tokens == tl.load(labels + index), tl.load(by_label + index), 0.0)
    if has_dense:
        gradient += tl.load(dense + index * dense_stride + tokens, mask=inside, other=0.0).to(tl.float32)
    tl.store(places, gradient, mask=inside)
    if has_tanh:
        capped = tanh + index * tanh_stride + tokens
        t = tl.load(capped, mask=inside, other=0.0).to(tl.float32)
        tl.store(capped, gradient * (1.0 - t * t), mask=inside)


def log_normaliser(logits: Tensor) -> Tensor:
    """See ``loss_reference``."""
    found = _row_values(logits)
    _launch(loss_normaliser, logits, len(logits), row_stride=logits.stride(0), normaliser=found, tile=_TILE)
    return found


def statistics(logits: Tensor, labels: Tensor, target: TargetLogits | None) -> RowStatistics:
    """See ``loss_reference``."""
    names = ("log_normaliser", "log_label", "distance", "cross_entropy", "slope", "mass")
    found = {name: _row_values(logits) for name in names}
    given = {"normaliser" if name == "log_normaliser" else name: value for name, value in found.items()}
    _launch(
        loss_statistics,
        logits,
        len(logits),
        row_stride=logits.stride(0),
        labels=labels,
        tile=_TILE,
        **given,
        **_target(target, logits),
    )
    return RowStatistics(**found)


def gradient_(
    logits: Tensor,
    labels: Tensor,
    target: TargetLogits | None,
    *,
    found: RowStatistics,
    by: RowGradients,
    dense: Tensor | None = None,
    tanh: Tensor | None = None,
) -> None:
    """See ``loss_reference``."""
    by_label = torch.where(labels >= 0, by.log_label, 0)
    num_blocks = triton.cdiv(logits.shape[1], _BLOCK)
    _launch(
        loss_gradient,
        logits,
        len(logits) * num_blocks,
        row_stride=logits.stride(0),
        labels=labels,
        normaliser=found.log_normaliser,
        by_label=by_label,
        by_distance=by.distance,
        by_cross_entropy=by.cross_entropy,
        factor=by.cross_entropy * found.mass - by.distance * found.slope - by_label,
        dense=logits if dense is None else dense,
        dense_stride=0 if dense is None else dense.stride(0),
        has_dense=dense is not None,
        tanh=logits if tanh is None else tanh,
        tanh_stride=0 if tanh is None else tanh.stride(0),
        has_tanh=tanh is not None,
        num_blocks=num_blocks,
        block=_BLOCK,
        **_target(target, logits),
    )


def _row_values(logits: Tensor) -> Tensor:
    """A float32 number for each row; those that involve the target stay 0 without one."""
    return torch.zeros(len(logits), dtype=torch.float32, device=logits.device)


def _target(target: TargetLogits | None, logits: Tensor) -> dict[str, Any]:
    rows = logits if target is None else target.logits
    return {
        "target": rows,
        "target_stride": rows.stride(0),
        "target_normaliser": logits if target is None else target.log_normaliser,
        "has_target": target is not None,
    }


def _launch(kernel: Any, logits: Tensor, programs: int, **arguments: Any) -> None:
    """Every tensor's rows are contiguous: they come from matrix products."""
    with torch.accelerator.device_index(logits.device.index):
        kernel[(programs,)](
            logits=logits,
            vocab_size=logits.shape[1],
            num_warps=NUM_WARPS,
            enable_fp_fusion=ENABLE_FP_FUSION,
            **arguments,
        )
