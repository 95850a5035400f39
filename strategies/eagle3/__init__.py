"""Eagle 3: an autoregressive drafter over fused target features, no head, fixed length (2503.01840)."""

from __future__ import annotations

import math

from deepspec import Strategy, hookimpl
from deepspec.strategy import Objective

#: The published weight of a step against the one before it.
_STEP_DECAY = 0.8


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    """The published composition."""
    objective = Objective(terms={"soft_ce": 1.0}, position_decay=-1 / math.log(_STEP_DECAY))
    return [Strategy(name="eagle3", drafter="eagle3", objective=objective)]


@hookimpl
def deepspec_parts() -> list[str]:
    """The drafter, and layouts of its checkpoints; imported when they are used."""
    return [
        "eagle3=deepspec_strategies.eagle3.drafter:Eagle3Drafter",
        "deepspec-eagle3=deepspec_strategies.eagle3.deepspec_layout:DeepSpecEagle3",
        "speculators-eagle3=deepspec_strategies.eagle3.speculators_layout:SpeculatorsEagle3",
        "sglang-eagle3=deepspec_strategies.eagle3.sglang_layout:SGLangEagle3",
    ]
