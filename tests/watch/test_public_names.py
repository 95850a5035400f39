"""Strategies, plugins and examples import from deepspec only what docs/plugins.md calls public."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("strategies", "plugins", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def public() -> dict[str, set[str]]:
    """The names that are public of each module, none where all are."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^## What is public\n(.*?)^## ", page, flags=re.DOTALL | re.MULTILINE)
    found: dict[str, set[str]] = {}
    names: set[str] = set()
    for word in re.findall(r"`(\w+(?:\.\w+)*)`", section):
        if word.split(".")[0] == "deepspec":  # `A` and `B` in `deepspec.c`, or a module by itself
            found[word], names = names, set()
        else:
            names.add(word)
    assert not names
    return found


PUBLIC = public()


def is_public(module: str, name: str) -> bool:
    if module not in PUBLIC or name.startswith("_"):
        return False
    members = PUBLIC[module] or getattr(importlib.import_module(module), "__all__", ())
    return not members or name in members


def private_imports(code: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.startswith("deepspec.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepspec":
            module = str(node.module)
            found += [f"{module}.{name.name}" for name in node.names if not is_public(module, name.name)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_public_names_are_imported(path: Path) -> None:
    assert private_imports(path.read_text(encoding="utf-8")) == []


def test_what_is_not_public_is_noticed() -> None:
    code = """
import deepspec.engine
from deepspec import Strategy, runs
from deepspec.target import ModelSource, load_target
from deepspec.nn import RMSNorm, _hidden
from deepspec.data import encode_prompt
"""
    private = ["engine", "runs", "target.load_target", "nn._hidden", "data.encode_prompt"]
    assert private_imports(code) == [f"deepspec.{name}" for name in private]


def test_what_the_page_calls_public_exists() -> None:
    for name, members in PUBLIC.items():
        module = importlib.import_module(name)
        for member in members:
            assert hasattr(module, member), f"{name}.{member}"
