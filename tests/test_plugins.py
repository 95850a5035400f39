"""Plugins: what clashes, misspells or breaks is named, and can be blocked; hooks are as documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pluggy
import pytest

from deepspec import hookspecs, plugins
from deepspec.errors import ConfigError, PluginError
from deepspec.hookspecs import hookimpl
from deepspec.plugins import (
    create_plugin_manager,
    describe_plugins,
    list_parts,
    list_strategies,
    register,
    resolve_part,
)
from deepspec.strategy import Strategy


def plugin_of(*strategies: object, parts: tuple[object, ...] = ()) -> object:
    """A plugin that registers these."""

    class Plugin:
        @hookimpl
        def deepspec_strategies(self) -> list[object]:
            return list(strategies)

        @hookimpl
        def deepspec_parts(self) -> list[object]:
            return list(parts)

    return Plugin()


def manager_of(**registered: object) -> pluggy.PluginManager:
    manager = create_plugin_manager(entry_points=False)
    for name, plugin in registered.items():
        register(manager, plugin, name=name)
    return manager


def part(name: str, kind: str) -> type:
    return type(name.title(), (), {"name": name, "kind": kind})


TOY = Strategy(name="toy", drafter="block")


def test_strategies_of_all_plugins_are_listed_by_name() -> None:
    other = Strategy(name="other", drafter="block")
    assert list_strategies(manager_of(a=plugin_of(TOY), b=plugin_of(other))) == {"toy": TOY, "other": other}


def test_two_strategies_of_one_name_clash_and_both_plugins_are_named() -> None:
    with pytest.raises(PluginError, match="strategy 'toy' is registered twice, by '[ab]' .* and '[ab]'"):
        list_strategies(manager_of(a=plugin_of(TOY), b=plugin_of(TOY)))


def test_two_plugins_of_one_name_clash() -> None:
    with pytest.raises(PluginError, match="two plugins are named 'a'"):
        register(manager_of(a=plugin_of()), plugin_of(), name="a")


def test_two_parts_of_one_kind_and_name_clash_but_not_of_two_kinds() -> None:
    manager = manager_of(a=plugin_of(parts=(part("x", "head"), part("x", "policy"))))
    assert resolve_part(manager, "head", "x").kind == "head"
    assert resolve_part(manager, "policy", "x").kind == "policy"
    register(manager, plugin_of(parts=(part("x", "head"),)), name="b")
    with pytest.raises(PluginError, match="head 'x' is registered twice, by '[ab]' .* and '[ab]'"):
        resolve_part(manager, "head", "x")


def test_a_misspelled_hook_is_an_error_that_lists_the_hooks() -> None:
    class Misspelled:
        @hookimpl
        def deepspec_strategy(self) -> list[Strategy]:
            return []

    with pytest.raises(
        PluginError, match=r"'deepspec_strategy'.*deepspec_strategies.*DEEPSPEC_BLOCK_PLUGINS=bad"
    ):
        manager_of(bad=Misspelled())


def test_a_hook_with_wrong_arguments_is_an_error() -> None:
    class Wrong:
        @hookimpl
        def deepspec_step_trained(self, steps: int) -> None:
            return None

    with pytest.raises(PluginError, match="plugin 'bad'.*steps"):
        manager_of(bad=Wrong())


def test_a_hook_that_raises_names_its_plugin() -> None:
    class Raises:
        @hookimpl
        def deepspec_strategies(self) -> list[Strategy]:
            raise KeyError("lost")

    with pytest.raises(PluginError, match="plugin 'bad': deepspec_strategies failed: KeyError: 'lost'"):
        list_strategies(manager_of(bad=Raises()))


@pytest.mark.parametrize("item", ["noname", "=a:B", "x=module.Class", 3])
def test_a_part_that_is_no_class_or_path_is_refused(item: object) -> None:
    with pytest.raises(PluginError, match="plugin 'bad' registers"):
        list_parts(manager_of(bad=plugin_of(parts=(item,))))


def test_a_strategy_that_is_none_is_refused() -> None:
    with pytest.raises(PluginError, match="which is not a Strategy"):
        list_strategies(manager_of(bad=plugin_of("toy")))


def test_a_part_whose_module_is_missing_names_the_plugin() -> None:
    with pytest.raises(PluginError, match=r"plugin 'bad': part 'x' \(absent_module:X\) failed to import"):
        resolve_part(manager_of(bad=plugin_of(parts=("x=absent_module:X",))), "head", "x")


def test_a_part_must_carry_the_name_it_is_registered_by() -> None:
    wrong = "sharp=deepspec.heads.none:NoHead"
    with pytest.raises(PluginError, match="as 'sharp', but its name is 'none'"):
        resolve_part(manager_of(bad=plugin_of(parts=(wrong,))), "head", "sharp")


def test_a_class_that_is_no_part_is_refused() -> None:
    with pytest.raises(PluginError, match="lacks 'name'"):
        list_parts(manager_of(bad=plugin_of(parts=(int,))))


def test_an_unknown_part_lists_those_of_its_kind_only() -> None:
    manager = manager_of(a=plugin_of(parts=(part("x", "head"), part("y", "policy"))))
    with pytest.raises(ConfigError, match=r"unknown head 'z'; known: x; .*needs a reinstall"):
        resolve_part(manager, "head", "z")


@pytest.fixture
def broken_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An installed plugin whose import fails, beside the built-in ones."""
    (tmp_path / "broken_deepspec_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("broken", "broken_deepspec_plugin", hookspecs.PROJECT)
    installed = plugins._entry_points()
    monkeypatch.setattr(plugins, "_entry_points", lambda: [*installed, point])
    return "broken"


def test_a_plugin_that_fails_to_import_is_named_with_the_way_out(broken_plugin: str) -> None:
    with pytest.raises(
        PluginError, match=r"plugin 'broken' .*ZeroDivisionError.*DEEPSPEC_BLOCK_PLUGINS=broken"
    ):
        create_plugin_manager()


def test_a_blocked_plugin_is_skipped(broken_plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", "other, broken")
    assert not create_plugin_manager().has_plugin("broken")


def test_blocking_what_is_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", "nobody")
    create_plugin_manager()
    assert "'nobody', which is not an installed plugin" in caplog.text


def test_installed_plugins_are_described_with_their_distribution() -> None:
    rows = {row["name"]: row for row in describe_plugins(create_plugin_manager())}
    assert set(rows["core"]) == {"name", "distribution", "version", "strategies", "parts"}
    assert rows["core"]["distribution"] == "deepspec"
    assert {"none", "markov", "token", "fixed", "identity"} <= set(rows["core"]["parts"])
    assert {"ce", "l1", "confidence"} <= set(rows["core"]["parts"])


def test_every_installed_strategy_resolves_all_its_parts() -> None:
    manager = create_plugin_manager()
    found = list_strategies(manager)
    assert found
    for strategy in found.values():
        strategy.check(manager)


def test_every_part_named_by_a_string_exists_under_that_name() -> None:
    manager = create_plugin_manager()
    for registered in list_parts(manager):
        cls = plugins._load_part(registered)
        assert resolve_part(manager, cls.kind, registered.name) is cls


def test_listing_plugins_imports_no_torch() -> None:
    code = (
        "import sys; from deepspec.plugins import *; describe_plugins(create_plugin_manager()); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_hooks_have_the_documented_signatures() -> None:
    signatures = {
        name: list(inspect.signature(hook).parameters)
        for name, hook in vars(hookspecs).items()
        if name.startswith("deepspec_")
    }
    assert signatures == {
        "deepspec_strategies": [],
        "deepspec_parts": [],
        "deepspec_round_verified": ["record"],
        "deepspec_step_trained": ["record"],
    }


def test_an_observer_is_called_with_the_record() -> None:
    seen = []

    class Observer:
        @hookimpl
        def deepspec_round_verified(self, record: object) -> None:
            seen.append(record)

    record = SimpleNamespace()
    manager_of(observer=Observer()).hook.deepspec_round_verified(record=record)
    assert seen == [record]
