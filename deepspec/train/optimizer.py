"""Muon for hidden matrices and AdamW for everything else, linear warm-up then cosine, clipping.

Muon (torch.optim.Muon with the step size of AdamW) orthogonalises updates, which means something for a
matrix between hidden states; matrices with a row per token, vectors and biases go to AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepspec.optimizers import load_state_tensors, muon_and_adamw, state_tensors, update
from deepspec.train.sharding import share_of, whole

if TYPE_CHECKING:
    from deepspec.config import TrainConfig


def schedule(step: int, *, num_steps: int, warmup_fraction: float) -> float:
    """The learning rate's factor in (0, 1] at 0-based ``step``: linear warm-up, then cosine towards 0."""
    warmup = max(1, round(num_steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def peak_learning_rate(config: TrainConfig, hidden_size: int) -> float:
    """The rate that was set, or the default for a drafter of that hidden size H.

    Muon: an update's spectral norm is the rate times sqrt(H), held constant. AdamW: the rate times H is.
    The constants were measured on the demo target (H = 192).
    """
    if config.learning_rate is not None:
        return config.learning_rate
    return 0.22 / math.sqrt(hidden_size) if config.optimizer == "muon" else 0.77 / hidden_size


class DraftOptimizer:
    """The optimisers of one draft model, driven together; frozen parameters are left alone.

    Args:
        parameters: by name.
        hidden_size: H of the drafter.
        vocab_sizes: row counts that mark a matrix as a vocabulary's (V and Vd).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        *,
        hidden_size: int,
        vocab_sizes: Collection[int],
    ) -> None:
        self.config = config
        self.peak = peak_learning_rate(config, hidden_size)
        self._names = {name: p for name, p in parameters.items() if p.requires_grad}
        hidden = [
            p for p in self._names.values() if config.optimizer == "muon" and is_hidden_matrix(p, vocab_sizes)
        ]
        chosen = {id(p) for p in hidden}
        rest = [p for p in self._names.values() if id(p) not in chosen]
        self._optimizers = muon_and_adamw(
            hidden, rest, learning_rate=self.peak, weight_decay=config.weight_decay
        )

    def step(self, step: int) -> tuple[Tensor, float]:
        """Clip, update and clear the gradients at 0-based ``step``.

        Returns:
            The gradient norm before clipping (0-d, on device) and the learning rate used. When the norm is
            not finite nothing is updated.
        """
        config = self.config
        norm = whole(nn.utils.clip_grad_norm_(self._names.values(), config.clip_norm))
        factor = schedule(step, num_steps=config.num_steps, warmup_fraction=config.warmup_fraction)
        rate = self.peak * factor
        if bool(torch.isfinite(norm)):
            update(self._optimizers, rate)
        self.clear()
        return norm, rate

    def clear(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts by name, see :func:`deepspec.optimizers.state_tensors`.

        They are shares where the weights are.
        """
        return state_tensors(self._optimizers, self._names)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state_tensors`, of whole ones; raises CheckpointError when they are of other
        parameters."""
        own = {
            key: share_of(value, self._names.get(key.rpartition("/")[0])) for key, value in tensors.items()
        }
        load_state_tensors(self._optimizers, self._names, own)


def is_hidden_matrix(parameter: Tensor, vocab_sizes: Collection[int]) -> bool:
    """Whether Muon should update it: a matrix of several rows, none of them a token's."""
    return parameter.ndim == 2 and min(parameter.shape) > 1 and len(parameter) not in vocab_sizes
