"""Put a strategy's parts on a device for a target, with weights that depend on the seed alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from deepspec.errors import ConfigError
from deepspec.resources import memory
from deepspec.target import Target

if TYPE_CHECKING:
    import pluggy

    from deepspec.strategy import Parts, Strategy

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def assemble(
    strategy: Strategy,
    target: Target,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    manager: pluggy.PluginManager | None = None,
) -> Parts:
    """Build the parts for ``target`` on ``device``.

    The target's embedding and LM head are shared when they are on ``device`` already, else copied there once.
    Raises ConfigError when parts do not fit the target or each other, ResourceError when the memory does not
    hold them.
    """
    with memory(lambda: _needs_memory(strategy, target, device)):
        info = target.info_on(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            parts = strategy.build(info, manager=manager)
        target.check_layers(parts.drafter.target_layers)
        parts.modules().to(device, dtype)
    return parts


def _needs_memory(strategy: Strategy, target: Target, device: torch.device) -> str:
    return (
        f"memory ran out putting the draft model of {strategy.name!r} on {device} (the target is on "
        f"{target.device}); make drafter or head smaller, hold the target's weights in less (target.dtype), "
        "or place the target elsewhere (--target-device)"
    )


def for_decoding(parts: Parts, target: Target, manager: pluggy.PluginManager | None = None) -> Parts:
    """``parts`` as the engine wants them, in the target's float type: a copy unless they are in it."""
    weights = parts.modules().state_dict()
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if kinds <= {target.dtype}:
        return parts
    place = next(iter(weights.values())).device
    copy = assemble(parts.strategy, target, device=place, dtype=target.dtype, seed=0, manager=manager)
    copy.modules().load_state_dict(weights)
    return copy


def copy_target_layers(drafter: nn.Module, target: Target) -> int:
    """Start draft layers from the target's last ones: each tensor ``layers.i.NAME`` of equal name and shape.

    Returns:
        How many tensors were copied; raises ConfigError when none fits.
    """
    matches = ((tensor, _LAYER.fullmatch(key)) for key, tensor in drafter.state_dict().items())
    own = [(tensor, int(match.group(1)), match.group(2)) for tensor, match in matches if match]
    first = target.info.num_layers - 1 - max((number for _, number, _ in own), default=0)
    theirs = target.model.get_decoder().layers.state_dict()
    copied = 0
    for tensor, number, name in own:
        source = theirs.get(f"{first + number}.{name}")
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            copied += 1
    if not copied:
        raise ConfigError(
            "train.init_from_target: no layer of this drafter has the names and shapes of the target's; "
            "set it to false"
        )
    return copied
