"""MTP: multi-token prediction modules on the target's last hidden state (2412.19437, 2509.18362)."""

from __future__ import annotations

import math

from deepspec import Strategy, hookimpl
from deepspec.strategy import Objective

#: FastMTP's weight of a step against the one before it (2509.18362, equation 2).
_STEP_DECAY = 0.6


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    """One recycled module, trained as FastMTP trains it."""
    objective = Objective(terms={"ce": 1.0}, position_decay=-1 / math.log(_STEP_DECAY))
    return [Strategy(name="mtp", drafter="mtp", objective=objective)]


@hookimpl
def deepspec_parts() -> list[str]:
    """The drafter, and layouts of its checkpoints; imported when they are used."""
    return [
        "mtp=deepspec_strategies.mtp.drafter:MTPDrafter",
        "native-mtp=deepspec_strategies.mtp.native_layout:NativeMTP",
        "speculators-mtp=deepspec_strategies.mtp.speculators_layout:SpeculatorsMTP",
    ]
