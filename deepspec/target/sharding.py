"""A target whose decoder layers are shared out among processes by FSDP2, for one that no device holds alone.

Embedding, final norm and LM head stay whole in each process: drafters and the loss read them. All processes
must run the target together, as many times each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from deepspec.target.model import Target


def shard_target(target: Target, device: torch.device) -> Target:
    """Leave this process its share of the layers of a target on the host, layer by layer, on ``device``."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.distributed_c10d import get_world_size
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (get_world_size(),))
    decoder = target.model.get_decoder()
    layers = {weight for layer in decoder.layers for weight in layer.parameters()}
    whole = {weight for weight in decoder.parameters() if weight not in layers}
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(
        decoder, mesh=mesh, ignored_params=whole
    )  # so that a layer's weights come while another computes
    target.model.to(device)
    return replace(target, is_sharded=True)


def whole_layer(layer: nn.Module) -> nn.Module:
    """A layer with all its weights, until it runs the next time; all processes ask together."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(layer, FSDPModule)
    layer.unshard()
    return layer
