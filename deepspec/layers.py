"""Puts a configuration together from its layers; every value remembers where it came from.

Layers, later ones win: the defaults of ``config.py``, the strategy's named composition, what a run to start
from says of strategy and target, ``--config`` (TOML or YAML), flags, ``--set a.b=c``. A strategy's fields
(``head``, ``draft_length``, ...) may stand at the top level of a file or of ``--set``. A part given with
``type`` is replaced, without it its options are merged. Unknown keys are errors that name the nearest known
key.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_origin

import yaml
from pydantic import BaseModel

from deepspec.config import RunConfig, Settings
from deepspec.errors import ConfigError, nearest
from deepspec.strategy import PartSpec, Strategy
from deepspec.validation import validate

if TYPE_CHECKING:
    import pluggy

Origin = Literal["default", "strategy", "run", "file", "flag"]
Keys = tuple[str, ...]


class Dotted(dict[str, Any]):
    """A mapping that dotted keys made: it sets single entries of a free mapping, a plain one replaces it."""


@dataclass(frozen=True)
class Resolved:
    """All layers put together: nested values, and the origin of each dotted key that a layer set."""

    values: dict[str, Any]
    origins: dict[str, Origin]

    def config(self) -> RunConfig:
        """The validated configuration; raises ConfigError, also when no layer gave a strategy."""
        if "strategy" not in self.values:
            raise ConfigError("no strategy was given; pass --strategy NAME (`deepspec plugins` lists them)")
        return validate(RunConfig, self.values, "configuration")

    def leaves(self) -> list[tuple[str, Any, Origin]]:
        """``(dotted key, value, origin)`` of every setting; those of the strategy only when there is one."""
        model = (
            self.config() if "strategy" in self.values else validate(Settings, self.values, "configuration")
        )
        return [(key, value, self._origin(key)) for key, value in _flatten(model.model_dump(mode="json"), ())]

    def _origin(self, key: str) -> Origin:
        parts = key.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((self.origins[prefix] for prefix in prefixes if prefix in self.origins), "default")


def resolve(
    strategy: str | None = None,
    *,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    run: Mapping[str, Any] | None = None,
    manager: pluggy.PluginManager | None = None,
) -> Resolved:
    """Put the layers together; ``flags`` maps dotted keys to values, None where a flag was not given.

    Of ``run``, strategy and target of one to start from, each counts where no other layer names one.

    Raises ConfigError for unknown keys, unreadable files and an unknown strategy; values are validated by
    :meth:`Resolved.config`.
    """
    in_file = read_file(file) if file is not None else {}
    in_flags = _nested((key, value) for key, value in (flags or {}).items() if value is not None)
    in_sets = parse_sets(sets)
    resolved = Resolved(values=Settings().model_dump(), origins={})
    flagged = _strategy_name(in_sets) or strategy
    if name := flagged or _strategy_name(in_file):
        _start_from(resolved, Strategy.named(name, manager), "flag" if flagged else "file")
    if flagged:
        in_file = {key: value for key, value in in_file.items() if key != "strategy"}
    _apply(resolved, _of_run(run or {}, name, (in_file, in_flags, in_sets)), "run", where="--init-from")
    _apply(resolved, in_file, "file", where=str(file))
    _apply(resolved, in_flags, "flag", where="flags")
    _apply(resolved, in_sets, "flag", where="--set")
    return resolved


def read_file(path: str | Path) -> dict[str, Any]:
    """A TOML, YAML or JSON file's mapping; raises ConfigError naming the file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from error
    try:
        if path.suffix == ".toml":
            values: Any = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml", ".json"):
            values = yaml.safe_load(text) or {}
        else:
            raise ConfigError(f"configuration file {path}: its name must end in .toml, .yaml, .yml or .json")
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"configuration file {path}: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"configuration file {path}: must hold a table of settings at its top level")
    return values


def parse_sets(sets: Iterable[str]) -> Dotted:
    """``["a.b=c"]`` as a nested mapping; values are YAML scalars or JSON. Raises ConfigError."""
    pairs = []
    for item in sets:
        key, separator, text = item.partition("=")
        if not separator or not all(key.strip().split(".")):
            raise ConfigError(f"--set {item!r}: write key=value, as in --set train.num_steps=100")
        try:
            pairs.append((key.strip(), _parse_value(text)))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item!r}: {_one_line(error)}") from error
    return _nested(pairs)


def _parse_value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text, JSON as the number that was meant
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _strategy_name(layer: Mapping[str, Any]) -> str | None:
    value = layer.get("strategy")
    return value if isinstance(value, str) else None


def _of_run(
    run: Mapping[str, Any], strategy: str | None, layers: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a run still has to say: its strategy when none is named, its target likewise."""
    targets = [layer["target"] for layer in layers if "target" in layer]
    has_target = any(not isinstance(target, Mapping) or "name" in target for target in targets)
    named = {"strategy": strategy is not None, "target": has_target}
    return {key: value for key, value in run.items() if not named[key]}


def _nested(pairs: Iterable[tuple[str, Any]]) -> Dotted:
    """Dotted keys as nested mappings; raises ConfigError when one key is both a value and a parent."""
    tree = Dotted()
    for key, value in pairs:
        *parents, last = key.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, Dotted())
            if not isinstance(node, Dotted):
                break
        if not isinstance(node, Dotted) or isinstance(node.get(last), Dotted):
            raise ConfigError(f"{key!r} is set twice, as a whole and key by key; give one of the two")
        node[last] = value
    return tree


def _start_from(resolved: Resolved, composition: Strategy, origin: Origin) -> None:
    resolved.values["strategy"] = composition.model_dump()
    for name in composition.model_fields_set:
        resolved.origins[f"strategy.{name}"] = "strategy"
    resolved.origins["strategy.name"] = origin


def _apply(resolved: Resolved, layer: Mapping[str, Any], origin: Origin, *, where: str) -> None:
    """Let one layer win over what is there."""
    for key, value in layer.items():
        if key == "strategy" and isinstance(value, str):
            continue  # the named composition that everything started from
        of_strategy = key in Strategy.model_fields and key not in RunConfig.model_fields
        if of_strategy and "strategy" not in resolved.values and "strategy" not in layer:
            raise ConfigError(
                f"{where}: {key!r} belongs to a strategy, and none was given; pass --strategy NAME"
            )
        tree = {"strategy": {key: value}} if of_strategy else {key: value}
        for path, leaf in _assignments(RunConfig, (), tree, where):
            _put(resolved, path, _named(resolved, path, leaf), origin)


def _assignments(
    model: type[BaseModel], at: Keys, tree: Mapping[str, Any], where: str
) -> Iterator[tuple[Keys, Any]]:
    """The single settings in ``tree``, a mapping given for ``model`` whose place is ``at``."""
    for name, value in tree.items():
        field = model.model_fields.get(name)
        path = (*at, name)
        if field is None:
            known = [*model.model_fields] if at else [*model.model_fields, *Strategy.model_fields]
            raise ConfigError(f"{where}: unknown key {'.'.join(path)!r} ({nearest(name, set(known))})")
        inner = field.annotation
        if inner is PartSpec and isinstance(value, str):
            yield path, {"type": value}
        elif isinstance(value, Mapping) and inner is PartSpec and "type" not in value:
            yield from (((*path, option), _plain(item)) for option, item in value.items())
        elif isinstance(value, Dotted) and get_origin(inner) is dict:
            yield from (((*path, entry), item) for entry, item in value.items())
        elif isinstance(value, Mapping) and inner is not PartSpec and _is_model(inner):
            yield from _assignments(inner, path, value, where)  # type: ignore[arg-type]
        else:
            yield path, _plain(value)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _named(resolved: Resolved, path: Keys, value: Any) -> Any:
    """The objective that ``value`` names, so that a later layer can change a field of it; else ``value``.

    A name that is none is refused when the strategy is validated.
    """
    if path != ("strategy", "objective") or not isinstance(value, str):
        return value
    return _plain(resolved.values["strategy"].get("objectives", {})).get(value, value)


def _put(resolved: Resolved, path: Keys, value: Any, origin: Origin) -> None:
    *parents, last = path
    key = ".".join(path)
    node = resolved.values
    for depth, name in enumerate(parents, start=1):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            outer = ".".join(path[:depth])
            raise ConfigError(
                f"{key!r} cannot be set, for {outer!r} is {node!r}; give {outer!r} as a mapping"
            )
    node[last] = value
    for inner in [name for name in resolved.origins if name.startswith(key + ".")]:
        del resolved.origins[inner]
    resolved.origins[key] = origin


def _flatten(values: Mapping[str, Any], at: Keys) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves += _flatten(value, (*at, name))
        else:
            leaves.append((".".join((*at, name)), value))
    return leaves
