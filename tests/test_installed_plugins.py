"""Third parties' distributions, laid out as by pip: what breaks or clashes is named, and skippable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ran, run

HEAD = "from deepspec import Strategy, hookimpl\n"
STRATEGY = (
    HEAD + "\n@hookimpl\ndef deepspec_strategies():\n    return [Strategy(name={0!r}, drafter={1!r})]\n"
)
PART = HEAD + "\n@hookimpl\ndef deepspec_parts():\n    return ['{0}={1}']\n"
Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(distribution, plugin, code)`` puts one into an import path of its own; returns its module."""

    def write(distribution: str, plugin: str, code: str, **modules: str) -> str:
        site = tmp_path / distribution
        module = f"{distribution}_of_{tmp_path.name}".replace("-", "_")
        info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[deepspec]\n{plugin} = {module}\n")
        for name, text in {module: code, **modules}.items():
            (site / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(site))
        return module

    return write


def refused(ran: Ran) -> str:
    """The one line of bad input."""
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    return ran.err


def names(ran: Ran) -> dict[str, list[str]]:
    assert ran.code == 0, ran.err
    return {row["name"]: row["strategies"] for row in ran.json}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import absent_module",
            "ModuleNotFoundError: No module named 'absent_module'",
        ),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('several\\nlines')", "RuntimeError: several lines"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_and_skippable(
    install: Install, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    module = install("fails", "broken", code)
    for words in (["plugins"], ["check", "dflash"], ["train", "--strategy", "dflash"]):
        line = refused(run(*words))
        assert line.startswith(f"error: plugin 'broken' ({module}) failed to import: {reason}")
        assert line.endswith("(to do without it: DEEPSPEC_BLOCK_PLUGINS=broken)\n")
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", "broken")
    assert "broken" not in names(run("plugins", "--json"))


def test_two_plugins_of_one_name_are_both_named_with_their_distributions(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = install("first", "twice", STRATEGY.format("one", "dflash"))
    two = install("second", "twice", STRATEGY.format("two", "dflash"))
    line = refused(run("plugins"))
    assert "two plugins are named 'twice': " in line
    assert f"{one} of first 1.5" in line
    assert f"{two} of second 1.5" in line
    assert "uninstall one (to do without both: DEEPSPEC_BLOCK_PLUGINS=twice)" in line
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", "twice")
    assert "twice" not in names(run("plugins", "--json"))


def test_two_strategies_of_one_name_are_named_with_both_plugins(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = install("first", "a", STRATEGY.format("mine", "dflash"))
    two = install("second", "b", STRATEGY.format("mine", "dflash"))
    for words in (["plugins"], ["eval", "--strategy", "mine"], ["train", "--strategy", "dspark"]):
        line = refused(run(*words))
        assert "strategy 'mine' is registered twice" in line
        assert f"'a' ({one})" in line
        assert f"'b' ({two})" in line
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", "a")
    assert names(run("plugins", "--json"))["b"] == ["mine"]


def test_two_parts_of_one_kind_and_name_are_named_with_both_plugins(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = install("first", "a", PART.format("markov", "deepspec.heads.markov:MarkovHead"))
    line = refused(run("eval", "--strategy", "dspark"))
    assert "head 'markov' is registered twice" in line
    assert f"'a' ({one})" in line
    assert "'core' (deepspec.stock)" in line
    assert names(run("plugins", "--json"))["a"] == []  # listing loads no part
    monkeypatch.setenv("DEEPSPEC_BLOCK_PLUGINS", "a")
    assert "nobody has trained" in refused(run("eval", "--strategy", "dspark"))


def test_a_part_that_fails_to_import_spoils_what_uses_it_alone(install: Install) -> None:
    code = PART.format("lost", "lost_drafter:Lost") + STRATEGY.format("lost", "lost").removeprefix(HEAD)
    install("third", "loses", code, lost_drafter="import absent_module")
    line = refused(run("eval", "--strategy", "lost"))
    assert "plugin 'loses': part 'lost' (lost_drafter:Lost) failed to import: ModuleNotFoundError" in line
    assert "DEEPSPEC_BLOCK_PLUGINS=loses" in line
    assert names(run("plugins", "--json"))["loses"] == ["lost"]
    assert "nobody has trained" in refused(run("eval", "--strategy", "dspark"))
