"""Runs every property on a strategy, or on a part in a small standard composition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from deepspec.errors import ConfigError, nearest
from deepspec.exact import contracts, properties
from deepspec.exact.parts import ToyDrafter
from deepspec.exact.properties import Finding, Subject
from deepspec.exact.report import Property, Report
from deepspec.exact.toy import ToyTarget
from deepspec.hookspecs import hookimpl
from deepspec.interfaces import Part, Proposer
from deepspec.plugins import (
    create_plugin_manager,
    list_parts,
    list_strategies,
    part_names,
    register,
    resolve_part,
)
from deepspec.strategy import PART_KINDS, Strategy

if TYPE_CHECKING:
    import pluggy

#: Name and function of each property, in the order of a report.
PROPERTIES: tuple[tuple[str, Callable[[Subject], Finding]], ...] = (
    ("output law", properties.output_law),
    ("joint law", properties.joint_law),
    ("noise", properties.noise),
    ("verdict law", properties.verdict_law),
    ("degenerate rows", properties.degenerate_rows),
    ("recorded q", properties.recorded_q),
    ("confidence", contracts.confidence),
    ("calibrator", contracts.calibrator),
    ("policy", contracts.policy),
    ("head block", contracts.head_block),
    ("drafter block", contracts.drafter_block),
)


class _Standard:
    """A plugin of the drafter that parts are checked with, and of a part that no plugin registers."""

    def __init__(self, *parts: type[Part]) -> None:
        self._parts = parts

    @hookimpl
    def deepspec_parts(self) -> list[type]:
        return [ToyDrafter, *self._parts]


def check_strategy(strategy: Strategy | str, manager: pluggy.PluginManager | None = None) -> Report:
    """Every property of a composition, or of the one that a plugin registered under this name.

    Raises ConfigError for an unknown name, and for parts or options that do not exist or do not fit.
    """
    manager = manager or create_plugin_manager()
    if isinstance(strategy, str):
        strategy = Strategy.named(strategy, manager)
    return _run(Subject(strategy, manager), strategy.name)


def check_part(part: type[Part] | str) -> Report:
    """Every property of the standard composition with one part in it.

    Args:
        part: a class, which need not be registered; a registered name; or ``KIND:NAME`` where several kinds
            have one of that name.

    Raises ConfigError for an unknown name.
    """
    manager = create_plugin_manager()
    if isinstance(part, str):
        kind, name = _find_part(manager, part)
        register(manager, _Standard(), name="standard")
    else:
        kind, name = part.kind, part.name
        known = any(
            found.source in (part, f"{part.__module__}:{part.__name__}") for found in list_parts(manager)
        )
        register(manager, _Standard(*(() if known else (part,))), name="standard")
    return _run(Subject(_composition(kind, name, manager), manager), name)


def check(name: str, *, changes: Mapping[str, Any] | None = None) -> Report:
    """Every property of the strategy or part of this name.

    ``changes`` are a strategy's, as :meth:`Strategy.replace` has them. Raises ConfigError for an unknown
    name, for changes of a part, and for those that do not fit.
    """
    manager = create_plugin_manager()
    strategies = list_strategies(manager)
    if name in strategies:
        return check_strategy(strategies[name].replace(**(changes or {})), manager)
    wanted = name.rpartition(":")[2]
    if all(part.name != wanted for part in list_parts(manager)):
        parts = [part for kind in PART_KINDS for part in part_names(manager, kind)]
        raise ConfigError(f"unknown strategy or part {name!r}; {nearest(wanted, {*strategies, *parts})}")
    if changes:
        raise ConfigError(f"{name!r} is a part, so {next(iter(changes))!r} cannot be set; give a strategy")
    return check_part(name)


def _find_part(manager: pluggy.PluginManager, given: str) -> tuple[str, str]:
    """Kind and name of the part that ``given`` means."""
    wanted, _, name = given.rpartition(":")
    kinds = []
    for kind in PART_KINDS:
        try:
            resolve_part(manager, kind, name)
        except ConfigError:
            continue
        kinds.append(kind)
    if wanted:
        kinds = [kind for kind in kinds if kind == wanted]
    if not kinds:
        raise ConfigError(
            f"{given!r} is no part of a strategy; allowed are registered parts of these kinds: "
            f"{', '.join(PART_KINDS)} (`deepspec plugins` lists them)"
        )
    if len(kinds) > 1:
        raise ConfigError(
            f"{name!r} is the name of several parts; give one of {', '.join(f'{k}:{name}' for k in kinds)}"
        )
    return kinds[0], name


def _composition(kind: str, name: str, manager: pluggy.PluginManager) -> Strategy:
    """The toy drafter, a Markov head and the threshold policy, with one part in its place."""
    parts = {"drafter": ToyDrafter.name, "head": "markov", "policy": "threshold", kind: name}
    strategy = Strategy(name=name, draft_length=3, **parts)
    if kind == "drafter" and issubclass(resolve_part(manager, kind, name), Proposer):
        return strategy.replace(head="none", policy="fixed")
    if kind == "head":
        cls, config = strategy.check(manager)["head"]
        info = ToyTarget().info
        context = strategy.replace(head="none", policy="fixed").build(info, manager=manager).head.context
        if cls(config, context).confidence == "none":
            return strategy.replace(policy="fixed")
    return strategy


def _run(subject: Subject, name: str) -> Report:
    subject.build(3, 3, 0)  # what cannot be built at all is bad input, not a broken promise
    with torch.no_grad():
        return Report(name, tuple(_verdict(title, run, subject) for title, run in PROPERTIES))


def _verdict(title: str, run: Callable[[Subject], Finding], subject: Subject) -> Property:
    try:
        found = run(subject)
    except Exception as error:  # noqa: BLE001  # foreign code may raise anything, and the rest is still checked
        reason = " ".join(str(error).split())
        return Property(title, False, f"could not be checked: {type(error).__name__}: {reason}", None)
    detail = found.holds if found.passed else found.broken
    error_ = found.error
    return Property(
        title, found.passed, detail, error_ if error_ is not None and math.isfinite(error_) else None
    )
