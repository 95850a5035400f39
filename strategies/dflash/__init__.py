"""DFlash: a parallel block drafter, no head, fixed length, cross-entropy (2602.06036)."""

from __future__ import annotations

from deepspec import Strategy, hookimpl
from deepspec.strategy import Objective


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    """The published composition."""
    return [
        Strategy(name="dflash", drafter="dflash", objective=Objective(terms={"ce": 1.0}, position_decay=4.0))
    ]


@hookimpl
def deepspec_parts() -> list[str]:
    """The drafter, and layouts of its checkpoints; imported when they are used."""
    return [
        "dflash=deepspec_strategies.dflash.drafter:DFlashDrafter",
        "deepspec-dspark=deepspec_strategies.dflash.deepspec_layout:DeepSpecDFlash",
        "speculators-dflash=deepspec_strategies.dflash.speculators_layout:SpeculatorsDFlash",
        "sglang-dflash=deepspec_strategies.dflash.sglang_layout:SGLangDFlash",
        "modelopt-dflash=deepspec_strategies.dflash.sglang_layout:ModelOptDFlash",
    ]
