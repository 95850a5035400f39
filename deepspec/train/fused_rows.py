"""Graded rows of a training step, whose usual numbers come from a kernel with a gradient in closed form.

Those numbers are leaves of the graph that the terms build. What a term reads beyond them (``logits``,
``draft``) is differentiated by autograd as :class:`GradedRows` writes it, and both gradients add up, so a
term may read anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.kernels import LossBackend
from deepspec.kernels.loss_reference import RowGradients, TargetLogits
from deepspec.train.output_weights import ChunkLogits
from deepspec.train.terms import GradedRows, at_least_float32


class FusedRows(GradedRows):
    """GradedRows over logits that nobody else needs.

    Args:
        chunk: logits without a graph; :meth:`gradient_` overwrites them.
        target: of the same tokens, None when no term reads it.
        is_reduced: whether the draft vocabulary lacks tokens, on which the rest of the target's mass lies.
    """

    def __init__(
        self,
        chunk: ChunkLogits,
        labels: Tensor,
        confidence: Tensor | None,
        target: TargetLogits | None,
        *,
        is_reduced: bool,
        backend: LossBackend,
    ) -> None:
        self._dense = _leaf(chunk.logits)
        super().__init__(self._dense, labels, confidence, None)
        self._chunk = chunk
        self._backend = backend
        self._target_logits = target
        self._found = found = backend.statistics(chunk.logits, labels, target)
        self._distance = _leaf(found.distance)
        # In the place of the formulas of GradedRows:
        self.log_label = _leaf(found.log_label)
        if target is not None:
            self.cross_entropy = _leaf(found.cross_entropy)
            self._outside = (1 - found.mass).clamp(min=0) if is_reduced else torch.zeros_like(found.mass)
            self.distance = self._distance + self._outside

    def gradient_(self) -> ChunkLogits | None:
        """After a backward pass from the losses: the logits' gradient in their place; None when it is 0."""
        found, chunk, dense = self._found, self._chunk, self._dense.grad
        cross_entropy = None if self._target_logits is None else self.cross_entropy.grad
        by = [self.log_label.grad, self._distance.grad, cross_entropy]
        if all(x is None for x in (dense, *by)):
            return None
        reads_target = any(x is not None for x in by[1:])
        self._backend.gradient_(
            chunk.logits,
            self.labels,
            self._target_logits if reads_target else None,
            found=found,
            by=RowGradients(*(torch.zeros_like(found.mass) if x is None else x for x in by)),
            dense=dense,
            tanh=chunk.tanh,
        )
        return chunk

    @torch.no_grad()
    def _pair(self) -> tuple[Tensor, Tensor]:
        target = self._target_logits
        if target is None:
            return super()._pair()
        probabilities = (at_least_float32(target.logits) - target.log_normaliser[:, None]).exp_()
        return probabilities, self._outside


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(torch.is_grad_enabled())
