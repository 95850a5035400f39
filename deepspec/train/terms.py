"""What drafted distributions are graded by: the loss terms of an objective, each a small named part.

A term sees the draft and target distributions at M training slots and returns one loss for each. Slots
are weighted and averaged by :mod:`deepspec.train.objective`. Terms here are those of DSpark (2607.05147)
and, where named, of others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deepspec.interfaces import Part

#: Stands for the logarithm of 0; its own exponential is 0.
_LEAST_LOG = -1e3


class GradedRows:
    """Draft and target at M slots; what no term asks for is not computed.

    Its formulas are the specification of what :mod:`deepspec.train.fused_rows` computes in closed form; a
    term that is a function of ``log_label``, ``distance`` and ``cross_entropy`` costs least.

    Args:
        logits: ``[M, Vd]`` of the drafter, differentiable, any float type.
        target: the target's probabilities ``[M, Vd]`` of the same tokens, and its mass ``[M]`` on others.

    Attributes:
        labels: int64 ``[M]``, the draft vocabulary's row of the true token, -1 when it has none.
        confidence: ``[M]`` logits, differentiable, or None when the head gives none.
    """

    def __init__(
        self, logits: Tensor, labels: Tensor, confidence: Tensor | None, target: tuple[Tensor, Tensor] | None
    ) -> None:
        self._logits = logits
        self.labels = labels
        self.confidence = confidence
        self._target = target

    @cached_property
    def logits(self) -> Tensor:
        """``[M, Vd]`` of the drafter, float32 or float64."""
        return at_least_float32(self._logits)

    @cached_property
    def log_draft(self) -> Tensor:
        """Log-probabilities ``[M, Vd]`` of the drafter."""
        return self.logits.log_softmax(dim=-1)

    @cached_property
    def log_label(self) -> Tensor:
        """``[M]``, the log-probability of the true token, -inf where the draft vocabulary lacks it."""
        picked = self.log_draft.gather(1, self.labels.clamp(min=0)[:, None])[:, 0]
        return torch.where(self.labels >= 0, picked, float("-inf"))

    @cached_property
    def draft(self) -> Tensor:
        """Probabilities ``[M, Vd]`` of the drafter."""
        return self.log_draft.exp()

    @property
    def target(self) -> Tensor:
        """The target's probabilities ``[M, Vd]`` of the same tokens, detached."""
        return self._pair()[0]

    @cached_property
    def log_target(self) -> Tensor:
        """``[M, Vd]``, log of :attr:`target`; finite, and below what any drafter says, where that is 0."""
        return self.target.log().clamp(min=_LEAST_LOG)

    @property
    def target_outside(self) -> Tensor:
        """``[M]``, the target's mass on tokens that the draft vocabulary lacks, detached."""
        return self._pair()[1]

    @cached_property
    def cross_entropy(self) -> Tensor:
        """``[M]``, -sum over the draft vocabulary of p log q."""
        return -(self.target * self.log_draft).sum(dim=-1)

    @cached_property
    def distance(self) -> Tensor:
        """L1 distance ``[M]`` over all V tokens, in [0, 2]: twice the total variation."""
        inside: Tensor = torch.linalg.vector_norm(self.draft - self.target, ord=1, dim=-1)
        return inside + self.target_outside

    @cached_property
    def acceptance(self) -> Tensor:
        """``[M]``, the chance that the token rule accepts a drafted token here, 1 - TV, detached."""
        return (1 - self.distance.detach() / 2).clamp(0, 1)

    def _pair(self) -> tuple[Tensor, Tensor]:
        if self._target is None:
            raise RuntimeError("an objective term reads the target without declaring reads_target")
        return self._target


def at_least_float32(value: Tensor) -> Tensor:
    """Losses are computed in no less."""
    return value if value.dtype == torch.float64 else value.float()


class ObjectiveTerm(Part, ABC):
    """One term of an objective; its weight comes from the strategy."""

    kind = "objective"
    #: Whether the term reads the target's distribution, and the head's confidence.
    reads_target: ClassVar[bool] = True
    reads_confidence: ClassVar[bool] = False

    @abstractmethod
    def loss(self, rows: GradedRows) -> Tensor:
        """The loss ``[M]`` of each slot."""


class CrossEntropy(ObjectiveTerm):
    """-log q(label); 0 where the draft vocabulary lacks the label."""

    name = "ce"
    reads_target = False

    def loss(self, rows: GradedRows) -> Tensor:
        return torch.where(rows.labels >= 0, -rows.log_label, 0.0)


class SoftCrossEntropy(ObjectiveTerm):
    """-sum over the draft vocabulary of p log q (EAGLE-3, 2503.01840); p's mass outside it does not count.

    It differs from KL(p || q) by the entropy of p, so their gradients are equal.
    """

    name = "soft_ce"

    def loss(self, rows: GradedRows) -> Tensor:
        return rows.cross_entropy


class L1Distance(ObjectiveTerm):
    """sum over tokens of |q - p|."""

    name = "l1"

    def loss(self, rows: GradedRows) -> Tensor:
        return rows.distance


class AcceptanceLikelihood(ObjectiveTerm):
    """-log of sum over tokens of min(p, q), the chance that the token rule accepts (LK, 2602.23881).

    In logarithms, so that value and gradient stay finite where p and q hardly overlap.
    """

    name = "lk"

    def loss(self, rows: GradedRows) -> Tensor:
        return -torch.minimum(rows.log_draft, rows.log_target).logsumexp(dim=-1)


class HybridLikelihood(ObjectiveTerm):
    """r KL(p || q) + (1 - r) TV(p, q), r = exp(-3 acceptance) of each slot, detached (LK, 2602.23881).

    KL is over the draft vocabulary, as in ``soft_ce``.
    """

    name = "lk_hybrid"

    def loss(self, rows: GradedRows) -> Tensor:
        divergence = rows.cross_entropy + (rows.target * rows.log_target).sum(dim=-1)
        share = (-3 * rows.acceptance).exp()
        return share * divergence + (1 - share) * rows.distance / 2


class ConfidenceEntropy(ObjectiveTerm):
    """Binary cross-entropy of the confidence against the analytic acceptance 1 - L1 / 2, detached."""

    name = "confidence"
    reads_confidence = True

    def loss(self, rows: GradedRows) -> Tensor:
        if rows.confidence is None:
            raise RuntimeError("the confidence term needs a head with a linear confidence")
        return binary_cross_entropy_with_logits(rows.confidence, rows.acceptance, reduction="none")
