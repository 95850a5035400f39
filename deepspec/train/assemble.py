"""Put a strategy's parts on a device for a target, with weights that depend on the seed alone."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepspec.nn import RMSNorm
from deepspec.resources import memory
from deepspec.target import Target

if TYPE_CHECKING:
    import pluggy

    from deepspec.strategy import Parts, Strategy

_LAYER = re.compile(r"((?:\w+\.\d+\.)?)layers\.(\d+)\.(.+)")


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


@torch.no_grad()
def copy_target_layers(drafter: nn.Module, target: Target) -> int:
    """Start the draft layers, ``layers.i.NAME``, and a final ``norm`` from the target's last ones.

    So do those of each stack in a list of stacks, ``LIST.d.layers.i.NAME`` and ``LIST.d.norm``.

    Returns:
        How many tensors were copied. All or none: 0 when a draft layer's tensor has another name or shape.
    """
    own = drafter.state_dict()
    matches = {name: match for name in own if (match := _LAYER.fullmatch(name))}
    depths: dict[str, int] = {}
    for match in matches.values():
        depths[match.group(1)] = max(depths.get(match.group(1), 0), 1 + int(match.group(2)))
    layer = functools.cache(target.layer)
    pairs: list[tuple[str, Tensor | None]] = []
    for name, match in matches.items():
        number = target.info.num_layers - depths[match.group(1)] + int(match.group(2))
        source = _start_value(layer(number), match.group(3)) if number >= 0 else None
        pairs.append((name, source))
    if any(source is None or source.shape != own[name].shape for name, source in pairs):
        return 0
    final = _start_value(target.model.get_decoder(), "norm.weight")
    norms = [name for prefix in depths if (name := f"{prefix}norm.weight") in own]
    pairs += [(name, final) for name in norms if final is not None and final.shape == own[name].shape]
    for name, source in pairs:
        assert source is not None
        owner = drafter.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, RMSNorm):
            owner.multiply_by_(source)
        else:
            own[name].copy_(source)
    return len(pairs)


def _start_value(module: nn.Module, name: str) -> Tensor | None:
    """A parameter by its dotted name; of a norm what it multiplies by, which some models store less one."""
    owner, _, leaf = name.rpartition(".")
    try:
        part = module.get_submodule(owner)
    except AttributeError:
        return None
    value = getattr(part, leaf, None)
    if isinstance(value, Tensor) and value.ndim == 1 and leaf == "weight":
        value = part(torch.ones_like(value))
    return value if isinstance(value, Tensor) else None
