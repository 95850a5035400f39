"""The four hooks a plugin may implement; a plugin is a module named by an entry point of group ``deepspec``.

Mark functions with :data:`hookimpl`. The two ``register`` hooks are pure functions that return lists;
entry-point modules must import fast (no torch), so name heavy classes by strings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from deepspec.strategy import Strategy
    from deepspec.types import RoundRecord, StepRecord

logger = logging.getLogger(__name__)

PROJECT = "deepspec"
#: Grows when a hook, or a contract of :mod:`deepspec.interfaces`, changes in a way that breaks plugins.
HOOK_API = 1
#: Plugins written for an older version than this are refused; docs/plugins.md has the rule.
OLDEST_HOOK_API = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def deepspec_strategies() -> Iterable[Strategy]:  # type: ignore[empty-body]
    """Named compositions, selected by ``--strategy NAME`` and ``Strategy.named``."""


@hookspec
def deepspec_parts() -> Iterable[type | str]:  # type: ignore[empty-body]
    """Parts, objective terms, feature sources and evaluation tasks.

    Each is a class, or ``"NAME=package.module:Class"``, which keeps listing from importing anything heavy.
    The class says its kind (``Class.kind``) and must carry the same ``Class.name``.
    """


@hookspec
def deepspec_round_verified(record: RoundRecord) -> None:
    """Observe each verified round of the engine; called on the thread that decodes."""


@hookspec
def deepspec_step_trained(record: StepRecord) -> None:
    """Observe each optimiser step."""


def check_hook_api(plugin: object, name: str) -> str | None:
    """What is wrong with the hook API that a plugin states as ``DEEPSPEC_HOOK_API``, None when nothing is.

    A version between the oldest and the current one is still taken, with a warning that names the plugin.
    """
    stated = getattr(plugin, "DEEPSPEC_HOOK_API", HOOK_API)
    known = str(HOOK_API) if OLDEST_HOOK_API == HOOK_API else f"{OLDEST_HOOK_API} to {HOOK_API}"
    if type(stated) is not int:
        return f"DEEPSPEC_HOOK_API is {stated!r}; write the version that it was made for, one of {known}"
    if stated > HOOK_API:
        return f"it was written for hook API {stated}, and this DeepSpec has {known}; upgrade DeepSpec"
    if stated < OLDEST_HOOK_API:
        return f"it was written for hook API {stated}, and this DeepSpec has {known}; upgrade the plugin"
    if stated < HOOK_API:
        logger.warning(
            "plugin %r was written for hook API %d, which a later release will refuse (now: %d); upgrade it",
            name,
            stated,
            HOOK_API,
        )
    return None
