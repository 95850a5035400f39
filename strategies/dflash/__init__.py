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
    """The drafter, imported when it is built."""
    return ["dflash=deepspec_strategies.dflash.drafter:DFlashDrafter"]
