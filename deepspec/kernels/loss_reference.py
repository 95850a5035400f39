"""What a training objective needs of draft and target rows, in plain torch: the specification of each kernel.

A loss that depends on draft logits x ``[M, Vd]`` through three numbers of each row, log q(label), the L1
distance of q and p and the cross-entropy of p and q, has a gradient in closed form. :func:`statistics`
gives the numbers, :func:`gradient_` puts the gradient in the place of the logits, so that no second tensor
of that size is made. Both work on a few rows at a time, which stay in a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Buffers = tuple[Tensor, Tensor, Tensor]
#: Elements of the rows that are worked on at once, by device type; elsewhere all rows.
_TILE_ELEMENTS = {"cpu": 2**19}


@dataclass(frozen=True)
class TargetLogits:
    """The target's logits ``[M, Vd]`` of the tokens that can be drafted; p = exp(logits - log_normaliser).

    ``log_normaliser [M]`` is over all V tokens, so that p sums to less than 1 where some cannot be drafted.
    """

    logits: Tensor
    log_normaliser: Tensor


@dataclass(frozen=True)
class RowStatistics:
    """Of each row, ``[M]``, float32 or float64; those that involve the target are 0 without one.

    Attributes:
        log_normaliser: log sum exp of the draft logits.
        log_label: log q(label), -inf where the label is -1.
        distance: sum |q - p| over the Vd tokens.
        cross_entropy: -sum p log q.
        slope: sum q sign(q - p), what softmax's derivative subtracts from the distance's.
        mass: sum p.
    """

    log_normaliser: Tensor
    log_label: Tensor
    distance: Tensor
    cross_entropy: Tensor
    slope: Tensor
    mass: Tensor


@dataclass(frozen=True)
class RowGradients:
    """The loss's derivative by ``log_label``, ``distance`` and ``cross_entropy`` of each row, ``[M]``."""

    log_label: Tensor
    distance: Tensor
    cross_entropy: Tensor


def log_normaliser(logits: Tensor) -> Tensor:
    """log sum exp of each row, ``[M]``."""
    return torch.cat([_softmax(logits[rows], buffers)[1] for rows, buffers in _tiles(logits)])


def statistics(logits: Tensor, labels: Tensor, target: TargetLogits | None) -> RowStatistics:
    """Statistics of draft ``logits [M, Vd]`` and int64 ``labels [M]``, the label's column or -1."""
    parts = []
    for rows, buffers in _tiles(logits):
        q, normaliser = _softmax(logits[rows], buffers)
        picked = logits[rows].gather(1, labels[rows].clamp(min=0)[:, None])[:, 0] - normaliser
        log_label = torch.where(labels[rows] >= 0, picked, float("-inf"))
        overlap = 4 * (torch.zeros_like(normaliser),)
        if target is not None:
            overlap = _overlap(logits[rows], q, normaliser, target, rows, buffers)
        parts.append((normaliser, log_label, *overlap))
    return RowStatistics(*(torch.cat(part) for part in zip(*parts, strict=True)))


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
    """Overwrite ``logits`` with the loss's gradient with respect to them.

    With a, b, c of ``by``, it is a (onehot - q) + b q (sign(q - p) - slope) + c (q mass - p).

    Args:
        found: the rows' statistics. by: the loss's derivative with respect to them.
        dense: ``[M, Vd]``, what reaches the logits past the statistics.
        tanh: ``[M, Vd]``, t where logits = cap * t + something; overwritten with gradient * (1 - t^2).
    """
    by_label = torch.where(labels >= 0, by.log_label, 0)
    factor = by.cross_entropy * found.mass - by.distance * found.slope - by_label
    for rows, (q, p, weights) in _tiles(logits):
        torch.sub(logits[rows], found.log_normaliser[rows, None], out=q).exp_()
        if target is None:
            gradient = q.mul_(factor[rows, None])
        else:
            torch.sub(target.logits[rows], target.log_normaliser[rows, None], out=p).exp_()
            torch.sub(q, p, out=weights).sign_().mul_(by.distance[rows, None]).add_(factor[rows, None])
            gradient = q.mul_(weights).addcmul_(p, by.cross_entropy[rows, None], value=-1)
        gradient.scatter_add_(1, labels[rows].clamp(min=0)[:, None], by_label[rows, None])
        if dense is not None:
            gradient.add_(dense[rows])
        logits[rows] = gradient
        if tanh is not None:
            tanh[rows] = gradient.addcmul_(gradient, torch.mul(tanh[rows], tanh[rows], out=p), value=-1)


def _tiles(logits: Tensor) -> Iterator[tuple[slice, Buffers]]:
    """Rows that are worked on at once, and three buffers of their size, the same ones for all."""
    size = _TILE_ELEMENTS.get(logits.device.type, logits.numel()) * torch.get_num_threads()
    count, width = logits.shape
    num_rows = min(count, max(1, size // width))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    first, second, third = (
        torch.empty((num_rows, width), dtype=dtype, device=logits.device) for _ in range(3)
    )
    for start in range(0, count, num_rows):
        here = slice(count - start)
        yield slice(start, start + num_rows), (first[here], second[here], third[here])


def _softmax(logits: Tensor, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """Probabilities, and log sum exp: a row's largest logit less the logarithm of its probability."""
    probabilities = torch.softmax(logits, dim=-1, dtype=buffers[0].dtype, out=buffers[0])
    return probabilities, logits.amax(dim=-1) - probabilities.amax(dim=-1).log()


def _overlap(
    logits: Tensor, q: Tensor, normaliser: Tensor, target: TargetLogits, rows: slice, buffers: Buffers
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance, cross-entropy, slope and mass; ``q`` lies in the first buffer."""
    p = torch.sub(target.logits[rows], target.log_normaliser[rows, None], out=buffers[1]).exp_()
    mass = p.sum(dim=-1)
    cross_entropy = normaliser * mass - torch.mul(p, logits, out=buffers[2]).sum(dim=-1)
    gap = torch.sub(q, p, out=p)
    sign = torch.sign(gap, out=buffers[2])
    slope = q.mul_(sign).sum(dim=-1)
    return gap.mul_(sign).sum(dim=-1), cross_entropy, slope, mass
