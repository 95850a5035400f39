"""How much each slot of a training block counts: a fixed decay, or the drafter's own survival (D-PACE).

Weighted losses are summed over an optimiser step and divided by a normaliser that is known before any
logits are, so that a step may be computed in parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from deepspec.strategy import Objective
from deepspec.train.terms import GradedRows

#: alpha of D-PACE: how much of a slot's confidence does not depend on the drafter.
_SMOOTHING = 0.5


class PositionWeights(ABC):
    """Weights of the M slots with a label among n blocks, ``valid [n, G]`` saying which those are."""

    @abstractmethod
    def total(self, valid: Tensor) -> float:
        """The normaliser of all blocks of a step."""

    @abstractmethod
    def of(self, rows: GradedRows, valid: Tensor) -> Tensor:
        """``[M]``, detached, in the order of ``valid.nonzero()``."""


class DecayWeights(PositionWeights):
    """w_k = exp(-(k-1)/decay), or 1 without decay; their mean is taken: the normaliser is sum(w)."""

    def __init__(self, decay: float | None) -> None:
        self.decay = math.inf if decay is None else decay

    def total(self, valid: Tensor) -> float:
        return float((self._weights(valid, torch.float64) * valid).sum())

    def of(self, rows: GradedRows, valid: Tensor) -> Tensor:
        return self._weights(valid, rows.log_label.dtype).expand(valid.shape)[valid]

    def _weights(self, valid: Tensor, dtype: torch.dtype) -> Tensor:
        positions = torch.arange(valid.shape[1], dtype=dtype, device=valid.device)
        return torch.exp(-positions / self.decay)


class SurvivalWeights(PositionWeights):
    """w_k = sum_{m>=k} prod_{i<=m} (alpha + (1 - alpha) q(label_i)) with alpha = 1/2 (D-PACE, 2605.18810).

    Each position's share in the gradient of a smoothed expected accepted length, which is a sum over blocks:
    the normaliser is their number, so the loss is no mean over slots, and grows with survival.
    """

    def total(self, valid: Tensor) -> float:
        return float(valid.any(dim=1).sum())

    def of(self, rows: GradedRows, valid: Tensor) -> Tensor:
        kept = rows.log_label.new_zeros(valid.shape)
        kept[valid] = _SMOOTHING + (1 - _SMOOTHING) * rows.log_label.detach().exp()
        return kept.cumprod(dim=1).flip(1).cumsum(dim=1).flip(1)[valid]


def make_position_weights(objective: Objective) -> PositionWeights:
    """Those that an objective asks for."""
    if objective.position_weights == "survival":
        return SurvivalWeights()
    return DecayWeights(objective.position_decay)
