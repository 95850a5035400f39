"""Muon for hidden matrices with AdamW for the rest, driven together, and their state as named tensors.

Which parameters go where and how the rate runs are the caller's; drafters and targets train with these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepspec.errors import CheckpointError

_BETAS = (0.9, 0.95)


def muon_and_adamw(
    hidden: Sequence[nn.Parameter],
    rest: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
) -> list[Optimizer]:
    """An optimiser for each group that is not empty; Muon takes steps of AdamW's size."""
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **options))
    if rest:
        fused = rest[0].device.type in ("cpu", "cuda")
        optimizers.append(torch.optim.AdamW(rest, betas=_BETAS, fused=fused, **options))
    return optimizers


def update(optimizers: Sequence[Optimizer], learning_rate: float) -> None:
    """One step of all of them at that rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()


def state_tensors(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Moments and step counts, keyed ``parameter/state``; the configuration gives everything else."""
    tensors = {}
    for optimizer, names in _groups(optimizers, parameters):
        for index, values in optimizer.state_dict()["state"].items():
            tensors.update({f"{names[index]}/{key}": torch.as_tensor(value) for key, value in values.items()})
    return tensors


def load_state_tensors(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of :func:`state_tensors`; raises CheckpointError when they are of other parameters."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = value
    strangers = sorted(set(states) - set(parameters))
    if strangers:
        raise CheckpointError(
            f"the optimiser state has {strangers[0]!r}, which this model has no parameter for; "
            "resume with the configuration that wrote it"
        )
    for optimizer, names in _groups(optimizers, parameters):
        groups = optimizer.state_dict()["param_groups"]
        state = {index: states[name] for index, name in enumerate(names) if name in states}
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _groups(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]
) -> Iterator[tuple[Optimizer, list[str]]]:
    """Each optimiser with the names of its parameters, in its own order."""
    by_id = {id(p): name for name, p in parameters.items()}
    for optimizer in optimizers:
        yield optimizer, [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]
