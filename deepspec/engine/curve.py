"""The SPS curve of a policy as an engine hands it out each round: a table on device, made once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from deepspec.curves import SpsCurve
from deepspec.environment import device_name
from deepspec.errors import ConfigError
from deepspec.interfaces import LengthPolicy
from deepspec.target import DecodingTarget

logger = logging.getLogger(__name__)


def curve_table(policy: LengthPolicy, most_tokens: int, target: DecodingTarget) -> Tensor | None:
    """``Load.steps_per_second`` for steps of up to ``most_tokens``; None where the policy has no curve.

    Says so in a line, once, where a curve is missing, flat, modelled, or of another machine or float type
    and the policy lives on it. Raises ConfigError for a curve that was measured for another model.
    """
    curve, device = policy.curve, target.device
    if policy.needs_curve:
        for problem in _problems(curve, target):
            _say(f"policy {policy.name!r} {problem}; measure this machine with `deepspec profile`")
    if curve is None:
        return None
    real = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(curve.table(most_tokens), dtype=real, device=device)


def _problems(curve: SpsCurve | None, target: DecodingTarget) -> Iterator[str]:
    if curve is None:
        yield "has no SPS curve and verifies all that is drafted (policy.curve)"
        return
    if curve.is_flat:
        yield "has a flat SPS curve and verifies all that is drafted"
    if curve.modelled:
        yield f"goes by a modelled SPS curve, of {curve.hardware or 'some machine'}"
        return
    if curve.model and curve.model != target.name:
        raise ConfigError(
            f"the SPS curve of policy.curve is of {curve.model!r} and the target is {target.name!r}; "
            f"measure one with `deepspec profile --target {target.name}`"
        )
    here = (
        ("machine", curve.hardware, device_name(target.device)),
        ("float type", curve.dtype, _dtype(target)),
    )
    for what, given, own in here:
        if given and given != own:
            yield f"goes by an SPS curve of another {what}, {given} and not {own}"


def _dtype(target: DecodingTarget) -> str:
    return str(target.dtype).removeprefix("torch.")


@cache
def _say(line: str) -> None:
    logger.warning("%s", line)
