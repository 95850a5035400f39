"""The SPS curve of a policy as an engine hands it out each round: a table on device, made once."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from deepspec.interfaces import LengthPolicy

logger = logging.getLogger(__name__)


def curve_table(policy: LengthPolicy, most_tokens: int, device: torch.device) -> Tensor | None:
    """``Load.steps_per_second`` for steps of up to ``most_tokens``; None where the policy has no curve.

    Says so in a line, once, where a curve is missing or flat that the policy lives on.
    """
    curve = policy.curve
    if curve is None or curve.is_flat:
        if policy.needs_curve:
            found = "has no SPS curve" if curve is None else "has a flat SPS curve"
            _say(
                f"policy {policy.name!r} {found} and verifies all that is drafted; name a file that was "
                "measured on this machine, as in --set policy.curve=FILE"
            )
        if curve is None:
            return None
    real = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(curve.table(most_tokens), dtype=real, device=device)


@cache
def _say(line: str) -> None:
    logger.warning("%s", line)
