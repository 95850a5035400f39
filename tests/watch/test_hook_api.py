"""HOOK_API: plugins of another version are answered, and versions change by the rule of docs/plugins.md."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deepspec
from deepspec import errors, hookspecs, interfaces, nn, testing, types
from deepspec.errors import PluginError
from deepspec.evaluate import EvalTask
from deepspec.features import FeatureSource, SourceContext
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Objective, Strategy
from deepspec.target import ModelSource, PackedDecoder
from deepspec.train import GradedRows, ObjectiveTerm
from tests.command_line import run
from tests.watch.snapshot import SNAPSHOTS, check_snapshot

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


def plugin(version: object) -> SimpleNamespace:
    return SimpleNamespace(__name__="made_plugin", DEEPSPEC_HOOK_API=version)


def registered(version: object) -> None:
    register(create_plugin_manager(entry_points=False), plugin(version), name="made")


def test_the_version_is_public() -> None:
    assert deepspec.HOOK_API == hookspecs.HOOK_API
    assert "HOOK_API" in deepspec.__all__


def test_a_plugin_of_this_version_or_of_none_is_taken_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    registered(deepspec.HOOK_API)
    register(create_plugin_manager(entry_points=False), SimpleNamespace(), name="made")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (4, r"it was written for hook API 4, and this DeepSpec has 2 to 3; upgrade DeepSpec"),
        (1, r"it was written for hook API 1, and this DeepSpec has 2 to 3; upgrade the plugin"),
        ("3", r"DEEPSPEC_HOOK_API is '3'; write the version that it was made for, one of 2 to 3"),
        (True, "DEEPSPEC_HOOK_API is True"),
    ],
)
def test_another_version_is_one_line_that_names_the_plugin(
    version: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hookspecs, "OLDEST_HOOK_API", 2)
    monkeypatch.setattr(hookspecs, "HOOK_API", 3)
    with pytest.raises(PluginError, match=rf"^plugin 'made': {message}.* \(.*=made\)$"):
        registered(version)


def test_a_deprecated_version_is_taken_with_one_line_of_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hookspecs, "OLDEST_HOOK_API", 2)
    monkeypatch.setattr(hookspecs, "HOOK_API", 3)
    registered(2)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "plugin 'made' was written for hook API 2" in record.getMessage()


def test_the_command_line_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newer_plugin.py").write_text("DEEPSPEC_HOOK_API = 99\n")
    info = tmp_path / "newer_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newer-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deepspec]\nnewer = newer_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = run("plugins")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: plugin 'newer': it was written for hook API 99")


def test_what_plugins_are_written_against_is_as_it_was_in_this_version() -> None:
    """Additions: write the snapshot anew. Removals and changes: the rule in docs/plugins.md comes first."""
    check_snapshot("".join(contract()), SNAPSHOTS / f"hook-api-{deepspec.HOOK_API}.txt")


def contract() -> Iterator[str]:
    """Every hook, and every class and function that a plugin's parts are made of, with signatures."""
    for name, hook in vars(hookspecs).items():
        if name.startswith("deepspec_"):
            yield f"{name}{sign(hook)}\n"
    found = [
        value for module in (interfaces, types) for name, value in vars(module).items() if name[0] != "_"
    ]
    found += [*(getattr(nn, name) for name in nn.__all__), PackedDecoder, ModelSource]
    found += [ObjectiveTerm, GradedRows, EvalTask, FeatureSource, SourceContext, Strategy, Objective]
    found += [getattr(module, name) for module in (deepspec, testing) for name in module.__all__]
    found += [value for name, value in vars(errors).items() if name[0] != "_"]
    for value in dict.fromkeys(value for value in found if callable(value)):
        if value.__module__.startswith("deepspec."):
            yield from describe(value)


def sign(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "")


def describe(value: Any) -> Iterator[str]:
    """A function's signature, or a class with its fields and the signatures of its methods."""
    if inspect.isfunction(value):
        yield f"{value.__name__}{sign(value)}\n"
    if inspect.isclass(value):
        yield f"{value.__name__}({', '.join(base.__name__ for base in value.__bases__)})\n"
        for name, kind in inspect.get_annotations(value).items():
            if not name.startswith("_"):
                yield f"    {name}: {getattr(kind, '__forward_arg__', kind)}\n"
        for name, member in vars(value).items():
            method = getattr(member, "fget", getattr(member, "__func__", getattr(member, "func", member)))
            own = not name.startswith("_") or (name == "__init__" and not is_dataclass(value))
            if own and inspect.isfunction(method):
                yield f"    {name}{sign(method)}\n"


@dataclass(frozen=True)
class Version:
    """A row of the table in docs/plugins.md; releases are (major, minor)."""

    number: int
    since: tuple[int, ...]
    warned: tuple[int, ...] | None
    refused: tuple[int, ...] | None


def table() -> list[Version]:
    def release(text: str) -> tuple[int, ...] | None:
        return None if text == "-" else tuple(map(int, text.split(".")))

    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\S+) \| (\S+) \|", PAGE.read_text(), flags=re.MULTILINE)
    return [Version(int(row[0]), release(row[1]) or (), release(row[2]), release(row[3])) for row in rows]


def broken_rules(versions: list[Version], *, oldest: int, newest: int) -> list[str]:
    """What in the history of versions is against the rule."""
    found = []
    if [version.number for version in versions] != list(range(1, newest + 1)):
        found.append("a version lacks its row")
    for version, following in zip(versions, [*versions[1:], None], strict=True):
        if version.warned != (following.since if following else None):
            found.append(f"version {version.number} is not warned of from the release of the next one on")
        if version.refused and (not version.warned or version.refused < two_minors_after(version.warned)):
            found.append(f"version {version.number} is refused after less than two minor releases")
    if [version.number for version in versions if not version.refused][:1] != [oldest]:
        found.append("OLDEST_HOOK_API is not the oldest version that is not refused")
    return found


def two_minors_after(release: tuple[int, ...]) -> tuple[int, int]:
    return release[0], release[1] + 2


def test_the_history_of_versions_follows_the_rule() -> None:
    versions = table()
    assert broken_rules(versions, oldest=hookspecs.OLDEST_HOOK_API, newest=hookspecs.HOOK_API) == []


def test_a_history_against_the_rule_is_noticed() -> None:
    first = Version(1, (0, 1), (0, 4), (0, 6))
    right = [first, Version(2, (0, 4), None, None)]
    assert broken_rules(right, oldest=2, newest=2) == []
    assert broken_rules(right, oldest=1, newest=2) == [
        "OLDEST_HOOK_API is not the oldest version that is not refused"
    ]
    assert broken_rules(right, oldest=2, newest=3) == ["a version lacks its row"]
    hasty = [replace(first, refused=(0, 5)), right[1]]
    assert broken_rules(hasty, oldest=2, newest=2) == [
        "version 1 is refused after less than two minor releases"
    ]
    silent = [replace(first, warned=None, refused=None), right[1]]
    assert broken_rules(silent, oldest=1, newest=2) == [
        "version 1 is not warned of from the release of the next one on"
    ]
