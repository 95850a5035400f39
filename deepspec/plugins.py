"""Finds plugins, and looks strategies and parts up in them; names that clash or do not exist are errors.

There is no module-global manager. Entry points are loaded one by one, so that the one that fails is named;
``DEEPSPEC_BLOCK_PLUGINS=a,b`` skips it.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pluggy

from deepspec import hookspecs
from deepspec.errors import ConfigError, PluginError, nearest
from deepspec.strategy import Strategy

if TYPE_CHECKING:
    from deepspec.types import RoundRecord

logger = logging.getLogger(__name__)

BLOCK_VARIABLE = "DEEPSPEC_BLOCK_PLUGINS"
REINSTALL = "a new entry point needs a reinstall (pip install -e .), also of an editable install"


@dataclass(frozen=True)
class RegisteredPart:
    """A part as its plugin registered it: ``source`` is the class, or its ``module:Class``."""

    name: str
    plugin: str
    source: type | str


def create_plugin_manager(*, entry_points: bool = True) -> pluggy.PluginManager:
    """A manager that knows the hooks and, with ``entry_points``, every installed plugin that is not blocked.

    Raises PluginError, naming the plugin, when one cannot be imported or misspells a hook, or when two
    distributions bring one of the same name.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if entry_points:
        blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",") if name.strip()}
        points = _entry_points()
        for name in sorted(blocked - {point.name for point in points}):
            logger.warning("%s names %r, which is not an installed plugin", BLOCK_VARIABLE, name)
        wanted = [point for point in points if point.name not in blocked]
        for one, other in pairwise(wanted):
            if one.name == other.name:
                raise PluginError(
                    f"two plugins are named {one.name!r}: {_origin(one)} and {_origin(other)}; uninstall one"
                    f"{_how_to_skip(one.name, 'both')}"
                )
        for point in wanted:
            register(manager, _load(point), name=point.name)
    return manager


def register(manager: pluggy.PluginManager, plugin: object, *, name: str) -> None:
    """Add one plugin.

    Raises PluginError for a name taken twice, another hook API, a misspelled hook or wrong arguments.
    """
    if manager.has_plugin(name):
        other = _module_name(manager.get_plugin(name))
        raise PluginError(f"two plugins are named {name!r}: {other} and {_module_name(plugin)}; rename one")
    if problem := hookspecs.check_hook_api(plugin, name):
        raise PluginError(f"plugin {name!r}: {problem}{_how_to_skip(name)}")
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        known = ", ".join(sorted(vars(manager.hook)))
        raise PluginError(f"plugin {name!r}: {reason}; hooks: {known}{_how_to_skip(name)}") from error


def list_strategies(manager: pluggy.PluginManager) -> dict[str, Strategy]:
    """Every named composition, by name; raises PluginError when two plugins register the same name."""
    found: dict[str, Strategy] = {}
    owners: dict[str, str] = {}
    for plugin, strategy in _registered(manager, "deepspec_strategies"):
        if not isinstance(strategy, Strategy):
            raise PluginError(
                f"plugin {plugin!r} registers {strategy!r} as a strategy, which is not a Strategy"
            )
        if strategy.name in found:
            both = f"{_describe(manager, owners[strategy.name])} and {_describe(manager, plugin)}"
            raise PluginError(
                f"strategy {strategy.name!r} is registered twice, by {both}{_how_to_skip(plugin)}"
            )
        found[strategy.name] = strategy
        owners[strategy.name] = plugin
    return found


def find_strategy(manager: pluggy.PluginManager, name: str) -> Strategy:
    """The composition called ``name``; raises ConfigError with the known names and the nearest."""
    known = list_strategies(manager)
    if name not in known:
        raise ConfigError(f"unknown strategy {name!r}; {nearest(name, known)}; {REINSTALL}")
    return known[name]


def list_parts(manager: pluggy.PluginManager) -> list[RegisteredPart]:
    """Every registered part of every kind; imports none of those that are named by strings."""
    found = []
    for plugin, source in _registered(manager, "deepspec_parts"):
        if isinstance(source, str):
            name, separator, path = source.partition("=")
            if not (separator and name and ":" in path):
                raise PluginError(
                    f"plugin {plugin!r} registers the part {source!r}; write 'NAME=package.module:Class'"
                )
            found.append(RegisteredPart(name=name.strip(), plugin=plugin, source=path.strip()))
        elif isinstance(source, type):
            name, _ = _name_and_kind(source, plugin)
            found.append(RegisteredPart(name=name, plugin=plugin, source=source))
        else:
            raise PluginError(
                f"plugin {plugin!r} registers {source!r} as a part; give a part class with a name"
            )
    return found


def resolve_part(manager: pluggy.PluginManager, kind: str, name: str) -> Any:
    """The class of the part of this kind and name (imports it).

    Raises ConfigError with the nearest name when there is none, PluginError when two plugins register it.
    """
    matches = [
        (part, cls)
        for part in list_parts(manager)
        if part.name == name
        for cls in [_load_part(part)]
        if cls.kind == kind
    ]
    if not matches:
        known = part_names(manager, kind)
        raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, known)}; {REINSTALL}")
    if len(matches) > 1:
        owners = " and ".join(_describe(manager, part.plugin) for part, _ in matches)
        raise PluginError(
            f"{kind} {name!r} is registered twice, by {owners}{_how_to_skip(matches[-1][0].plugin)}"
        )
    return matches[0][1]


def part_names(manager: pluggy.PluginManager, kind: str) -> list[str]:
    """Names of all registered parts of a kind (imports every part)."""
    return [cls.name for cls in part_classes(manager, kind)]


def part_classes(manager: pluggy.PluginManager, kind: str) -> list[Any]:
    """All registered parts of a kind (imports every part)."""
    classes = [_load_part(part) for part in list_parts(manager)]
    return [cls for cls in classes if cls.kind == kind]


def describe_plugins(manager: pluggy.PluginManager) -> list[dict[str, Any]]:
    """For each plugin ``{"name", "distribution", "version", "strategies", "parts"}``, by name."""
    list_strategies(manager)  # a clash is an error here too
    distributions = {point.name: point.dist for point in _entry_points()}
    strategies = list(_registered(manager, "deepspec_strategies"))
    parts = list_parts(manager)
    rows = []
    for name, _ in sorted(manager.list_name_plugin()):
        distribution = distributions.get(name)
        rows.append(
            {
                "name": name,
                "distribution": distribution.name if distribution else None,
                "version": distribution.version if distribution else None,
                "strategies": sorted(strategy.name for owner, strategy in strategies if owner == name),
                "parts": sorted(part.name for part in parts if part.plugin == name),
            }
        )
    return rows


def round_observer(manager: pluggy.PluginManager) -> Callable[[RoundRecord], None]:
    """Hands each engine step to the plugins that observe rounds."""
    return lambda record: manager.hook.deepspec_round_verified(record=record)


def _entry_points() -> list[EntryPoint]:
    return sorted(entry_points(group=hookspecs.PROJECT), key=lambda point: point.name)


def _load(point: EntryPoint) -> object:
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # foreign code must not end in a traceback
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"plugin {point.name!r} ({point.value}) failed to import: {reason}{_how_to_skip(point.name)}"
        ) from error


def _registered(manager: pluggy.PluginManager, hook: str) -> Iterator[tuple[str, Any]]:
    """What each implementation of a registering hook returns, with the plugin's name."""
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    for implementation in caller.get_hookimpls():
        name = implementation.plugin_name
        try:
            items = list(implementation.function())  # type: ignore[call-overload]
        except Exception as error:  # as in _load
            reason = f"{type(error).__name__}: {error}"
            raise PluginError(f"plugin {name!r}: {hook} failed: {reason}{_how_to_skip(name)}") from error
        yield from ((name, item) for item in items)


def _load_part(part: RegisteredPart) -> Any:
    if isinstance(part.source, type):
        return part.source
    module_name, _, class_name = part.source.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # as in _load
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"plugin {part.plugin!r}: part {part.name!r} ({part.source}) failed to import: {reason}"
            f"{_how_to_skip(part.plugin)}"
        ) from error
    name, _ = _name_and_kind(cls, part.plugin)
    if name != part.name:
        raise PluginError(
            f"plugin {part.plugin!r} registers {part.source} as {part.name!r}, but its name is {name!r}"
        )
    return cls


def _name_and_kind(cls: Any, plugin: str) -> tuple[str, str]:
    try:
        return str(cls.name), str(cls.kind)
    except AttributeError as error:
        raise PluginError(
            f"plugin {plugin!r} registers {cls!r} as a part, but it lacks {error.name!r}; "
            "inherit from one of the classes in deepspec.interfaces and give it a name"
        ) from error


def _module_name(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__


def _describe(manager: pluggy.PluginManager, plugin: str) -> str:
    return f"{plugin!r} ({_module_name(manager.get_plugin(plugin))})"


def _origin(point: EntryPoint) -> str:
    return point.value if point.dist is None else f"{point.value} of {point.dist.name} {point.dist.version}"


def _how_to_skip(plugin: str, what: str = "it") -> str:
    return f" (to do without {what}: {BLOCK_VARIABLE}={plugin})"
