"""Draft weights shared out among processes by FSDP2, and whole again for what is written.

Drafter and head are one unit: between steps each process holds its share of weights, gradients and optimiser
state; during a step all weights, so that a drafter may use them in any order and by any method.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from deepspec.interfaces import Drafter, SequentialHead
    from deepspec.types import AnchorBlocks, Features, TokenBatch

Forward = tuple[Tensor, Tensor | None, Tensor | None]


class DraftModel(nn.Module):
    """``drafter`` and ``head`` as one module, whose one pass FSDP can see."""

    def __init__(self, drafter: Drafter[Any], head: SequentialHead[Any]) -> None:
        super().__init__()
        self.drafter, self.head = drafter, head

    def forward(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Forward:
        """Hidden states ``[N, G, H]``, and the head's latent and confidence, for training."""
        hidden = self.drafter.block(batch, features, anchors)
        step = self.head.block(anchors.previous, hidden)
        return hidden, step.latent, step.confidence


def shard_(model: DraftModel, device: torch.device) -> None:
    """Leave this process its share of the weights; gradients are summed over all processes from then on."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.distributed_c10d import get_world_size
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (get_world_size(),))
    sharded = fully_shard(model, mesh=mesh, reshard_after_forward=False)
    sharded.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the whole step's weight
    sharded.set_force_sum_reduction_for_comms(True)


def unshard_(model: nn.Module, *, whole: bool) -> None:
    """Make the weights of a model that is shared out whole, or leave each process its share again."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    if whole:
        model.unshard()
    else:
        model.reshard()


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Every tensor whole and on the host (not copied when it is that), where ``keep`` says so.

    All processes take part when they are shares.
    """
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu()
    return found


def whole(tensor: Tensor) -> Tensor:
    """The tensor that this is a share of; all processes take part."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def share_of(value: Tensor, parameter: Tensor | None) -> Tensor:
    """The part of a whole tensor that goes with ``parameter``; all of it where that is no share, or the shape
    is another."""
    if parameter is None or value.shape != parameter.shape or not _is_share(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    place = parameter.device_mesh
    return distribute_tensor(value.to(parameter.device), place, parameter.placements, src_data_rank=None)


def _is_share(tensor: Tensor) -> TypeGuard[DTensor]:
    # Importing the type takes a second, and where nobody has, no tensor is of it.
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)
