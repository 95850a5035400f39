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
    """Of each row, ``[M]``, float32 or float64; those that involve the target are None without one.

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
    distance: Tensor | None = None
    cross_entropy: Tensor | None = None
    slope: Tensor | None = None
    mass: Tensor | None = None


@dataclass(frozen=True)
class RowGradients:
    """The loss's derivative by ``log_label``, ``distance`` and ``cross_entropy`` of each row; None for 0."""

    log_label: Tensor | None = None
    distance: Tensor | None = None
    cross_entropy: Tensor | None = None


def log_normaliser(logits: Tensor) -> Tensor:
    """log sum exp of each row, ``[M]``."""
    return torch.cat([_softmax(_wide(logits[rows]))[1] for rows in _tiles(logits)])


def statistics(logits: Tensor, labels: Tensor, target: TargetLogits | None) -> RowStatistics:
    """Statistics of draft ``logits [M, Vd]`` and int64 ``labels [M]``, the label's column or -1."""
    parts = [_tile_statistics(_wide(logits[rows]), labels[rows], target, rows) for rows in _tiles(logits)]
    return RowStatistics(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))


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

    Args:
        found: the rows' statistics. by: the loss's derivative with respect to them.
        dense: ``[M, Vd]``, what reaches the logits past the statistics.
        tanh: ``[M, Vd]``, t where logits = cap * t + something; overwritten with gradient * (1 - t^2).
    """
    for rows in _tiles(logits):
        gradient = _tile_gradient(_wide(logits[rows]), labels[rows], target, found, by, rows)
        if dense is not None:
            gradient += dense[rows]
        logits[rows] = gradient
        if tanh is not None:
            tanh[rows] = gradient.addcmul_(gradient, _wide(tanh[rows]).square(), value=-1)


def _tiles(logits: Tensor) -> Iterator[slice]:
    size = _TILE_ELEMENTS.get(logits.device.type, logits.numel()) * torch.get_num_threads()
    num_rows = max(1, size // logits.shape[1])
    return (slice(start, start + num_rows) for start in range(0, len(logits), num_rows))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and log sum exp: a row's largest logit less the logarithm of its probability."""
    probabilities = logits.softmax(dim=-1)
    return probabilities, logits.amax(dim=-1) - probabilities.amax(dim=-1).log()


def _target_probabilities(target: TargetLogits, rows: slice) -> Tensor:
    return (_wide(target.logits[rows]) - target.log_normaliser[rows, None]).exp_()


def _tile_statistics(
    logits: Tensor, labels: Tensor, target: TargetLogits | None, rows: slice
) -> tuple[Tensor | None, ...]:
    """The fields of RowStatistics for one tile."""
    q, normaliser = _softmax(logits)
    log_q = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0] - normaliser
    log_label = torch.where(labels >= 0, log_q, float("-inf"))
    if target is None:
        return normaliser, log_label, None, None, None, None
    p = _target_probabilities(target, rows)
    mass = p.sum(dim=-1)
    cross_entropy = normaliser * mass - torch.linalg.vecdot(p, logits)
    gap = torch.sub(q, p, out=p)
    sign = gap.sign()
    return (
        normaliser,
        log_label,
        torch.linalg.vecdot(sign, gap),
        cross_entropy,
        torch.linalg.vecdot(sign, q),
        mass,
    )


def _tile_gradient(
    logits: Tensor,
    labels: Tensor,
    target: TargetLogits | None,
    found: RowStatistics,
    by: RowGradients,
    rows: slice,
) -> Tensor:
    """With a, b, c the derivatives: a (onehot - q) + b q (sign(q - p) - slope) + c (q mass - p)."""
    q = (logits - found.log_normaliser[rows, None]).exp_()
    factor = torch.zeros_like(found.log_normaliser[rows])
    gradient = q
    p = None if target is None else _target_probabilities(target, rows)
    by_label = None if by.log_label is None else torch.where(labels >= 0, by.log_label[rows], 0)
    if by_label is not None:
        factor = factor - by_label
    if by.cross_entropy is not None and found.mass is not None:
        factor = factor + by.cross_entropy[rows] * found.mass[rows]
    if by.distance is not None and found.slope is not None and p is not None:
        factor = factor - by.distance[rows] * found.slope[rows]
        weights = torch.sub(q, p).sign_().mul_(by.distance[rows, None]).add_(factor[:, None])
        gradient = q.mul_(weights)
    else:
        gradient = q.mul_(factor[:, None])
    if by.cross_entropy is not None and p is not None:
        gradient.addcmul_(p, -by.cross_entropy[rows, None])
    if by_label is not None:
        gradient.scatter_add_(1, labels.clamp(min=0)[:, None], by_label[:, None])
    return gradient
