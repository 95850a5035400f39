"""Muon for hidden matrices and AdamW for everything else, linear warm-up then cosine, clipping.

Muon (torch.optim.Muon with the step size of AdamW) orthogonalises updates, which means something for a
matrix between hidden states; matrices with a row per token, vectors and biases go to AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepspec.errors import CheckpointError

if TYPE_CHECKING:
    from deepspec.config import TrainConfig

_BETAS = (0.9, 0.95)


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
        options: dict[str, Any] = {"lr": self.peak, "weight_decay": config.weight_decay}
        self._optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            self._optimizers.append(torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **options))
        if rest:
            fused = rest[0].device.type in ("cpu", "cuda")
            self._optimizers.append(torch.optim.AdamW(rest, betas=_BETAS, fused=fused, **options))

    def step(self, step: int) -> tuple[Tensor, float]:
        """Clip, update and clear the gradients at 0-based ``step``.

        Returns:
            The gradient norm before clipping (0-d, on device) and the learning rate used. When the norm is
            not finite nothing is updated.
        """
        config = self.config
        norm = nn.utils.clip_grad_norm_(self._names.values(), config.clip_norm)
        factor = schedule(step, num_steps=config.num_steps, warmup_fraction=config.warmup_fraction)
        rate = self.peak * factor
        if bool(torch.isfinite(norm)):
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
        self.clear()
        return norm, rate

    def clear(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, keyed ``parameter/state``; the configuration gives everything else."""
        tensors = {}
        for optimizer, names in self._groups():
            for index, values in optimizer.state_dict()["state"].items():
                tensors.update(
                    {f"{names[index]}/{key}": torch.as_tensor(value) for key, value in values.items()}
                )
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state_tensors`; raises CheckpointError when they are of other parameters."""
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            states.setdefault(name, {})[part] = value
        strangers = sorted(set(states) - set(self._names))
        if strangers:
            raise CheckpointError(
                f"the optimiser state has {strangers[0]!r}, which this draft model has no parameter for; "
                "resume with the configuration that wrote it"
            )
        for optimizer, names in self._groups():
            groups = optimizer.state_dict()["param_groups"]
            state = {index: states[name] for index, name in enumerate(names) if name in states}
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _groups(self) -> Iterator[tuple[torch.optim.Optimizer, list[str]]]:
        """Each optimiser with the names of its parameters, in its own order."""
        by_id = {id(p): name for name, p in self._names.items()}
        for optimizer in self._optimizers:
            yield optimizer, [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]


def is_hidden_matrix(parameter: Tensor, vocab_sizes: Collection[int]) -> bool:
    """Whether Muon should update it: a matrix of several rows, none of them a token's."""
    return parameter.ndim == 2 and min(parameter.shape) > 1 and len(parameter) not in vocab_sizes
