"""The four hooks a plugin may implement; a plugin is a module named by an entry point of group ``deepspec``.

Mark functions with :data:`hookimpl`. The two ``register`` hooks are pure functions that return lists;
entry-point modules must import fast (no torch), so name heavy classes by strings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from deepspec.strategy import Strategy
    from deepspec.types import RoundRecord, StepRecord

PROJECT = "deepspec"
#: Grows when a hook changes in a way that breaks plugins.
HOOK_API = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def deepspec_strategies() -> Iterable[Strategy]:  # type: ignore[empty-body]
    """Named compositions, selected by ``--strategy NAME`` and ``Strategy.named``."""


@hookspec
def deepspec_parts() -> Iterable[type | str]:  # type: ignore[empty-body]
    """Parts, objective terms and evaluation tasks: classes, or ``"NAME=package.module:Class"``.

    Naming them by strings keeps listing them from importing anything heavy.
    The class says its kind (``Class.kind``) and must carry the same ``Class.name``.
    """


@hookspec
def deepspec_round_verified(record: RoundRecord) -> None:
    """Observe each verified round of the engine; called on the thread that decodes."""


@hookspec
def deepspec_step_trained(record: StepRecord) -> None:
    """Observe each optimiser step."""
