"""The distribution holds what the disk holds, the core names no strategy, and importing it is light."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deepspec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def packages_on_disk() -> set[str]:
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *inside)))
    return found


def test_the_packages_of_the_distribution_are_those_on_disk() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


def test_no_module_lies_in_a_folder_that_is_no_package() -> None:
    for folder in SETUPTOOLS["package-dir"].values():
        for module in (ROOT / folder).rglob("*.py"):
            if "assets" not in module.parts:
                assert (module.parent / "__init__.py").exists(), module


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy, so that no build folder is left behind; needs no network."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="this environment cannot build a wheel by itself"
    )
    import shutil
    import zipfile

    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    for folder in SETUPTOOLS["package-dir"].values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "README.md").touch()
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "dist"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    with zipfile.ZipFile(next((copy / "dist").glob("*.whl"))) as wheel:
        return set(wheel.namelist())


def test_the_wheel_holds_every_module_and_data_file(wheel_names: set[str]) -> None:
    expected = {"deepspec/py.typed"}
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            ships = path.suffix == ".py" or "assets" in inside.parts or path.name == "README.md"
            if ships and path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{package}/{inside.as_posix()}")
    assert expected <= wheel_names


def test_strategies_refuses_its_other_name() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "import strategies"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "import it as 'deepspec_strategies'" in ran.stderr


def test_the_core_names_no_strategy() -> None:
    pattern = re.compile(r"(?<![a-z])(dflash|dspark|eagle3?|mtp)(?![a-z])")  # papers are cited as DSpark
    for path in (ROOT / "deepspec").rglob("*.py"):
        inside = path.relative_to(ROOT / "deepspec").parts
        if inside[0] not in ("assets", "interop"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not pattern.search(line), f"{path}:{number}: {line.strip()}"


def test_every_public_name_exists_and_is_no_module() -> None:
    from types import ModuleType

    for name in deepspec.__all__:
        assert not isinstance(getattr(deepspec, name), ModuleType), name


def test_a_function_is_not_hidden_by_the_package_of_its_name() -> None:
    code = (
        "import deepspec.train, deepspec.evaluate, deepspec; "
        "assert callable(deepspec.train) and callable(deepspec.evaluate)"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = deepspec.nothing


def test_importing_the_package_is_light() -> None:
    code = "import deepspec, deepspec.layers, sys; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
