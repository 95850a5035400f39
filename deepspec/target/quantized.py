"""Embedding and LM head of models whose weights are quantised: drafters share them as ordinary matrices.

A layer that is quantised keeps its weights in a form of its own, so what it computes is asked of it, once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_ROWS = 4096  # asked for at a time


def plain_weight(module: nn.Module) -> Tensor | None:
    """The weight of a layer that is not quantised."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter):
        return None
    return weight if weight.is_floating_point() and weight.element_size() > 1 else None


@torch.no_grad()
def dense_embedding(module: nn.Module, num_rows: int, scale: float, device: torch.device) -> Tensor:
    """``[V, D]`` of an embedding that multiplies by ``scale``."""
    ids = torch.arange(num_rows, device=device)
    return torch.cat([module(some) for some in ids.split(_ROWS)]) / scale


@torch.no_grad()
def dense_matrix(module: nn.Module, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[V, D]`` of a linear layer without a bias, from what it makes of unit vectors."""
    units = torch.eye(size, dtype=dtype, device=device)
    return torch.cat([module(some) for some in units.split(_ROWS)]).T.contiguous()


def stored_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor that only looks like one number type is stored as; itself when it is no such tensor."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from stored_tensors(getattr(tensor, name))
    else:
        yield tensor
