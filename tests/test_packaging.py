"""The distribution holds what the disk holds, the core names no strategy, and importing it is light."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import deepspec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
#: What an sdist holds besides the packages.
SHIPPED_PAGES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


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


@dataclass(frozen=True)
class Built:
    """An sdist, the wheel made from the sources and the one made from the sdist."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built from a copy, so that no build folder is left behind; needs no network."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED_PAGES:
        shutil.copy(ROOT / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "test_it.py").touch()  # setuptools would take it along, without what it imports
    for part in SETUPTOOLS["package-dir"].values():
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    return Built(sdist, pip_wheel(source, folder / "from-source"), pip_wheel(sdist, folder / "from-sdist"))


def pip_wheel(source: Path, out: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", str(source), *options]
    subprocess.run(command, cwd=out.parent, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def names_in_wheel(wheel: Path) -> set[str]:
    """The files that an install puts beside the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def shipped_on_disk() -> dict[str, str]:
    """What a wheel has to hold: name in it, and path in the checkout."""
    found = {}
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            ships = (
                path.suffix in (".py", ".jinja")
                or "assets" in inside.parts
                or path.name in ("README.md", "py.typed")
            )
            if ships and path.is_file() and "__pycache__" not in inside.parts:
                found[f"{package}/{inside.as_posix()}"] = f"{folder}/{inside.as_posix()}"
    return found


def test_the_wheel_holds_the_modules_and_data_files_on_disk_and_nothing_else(built: Built) -> None:
    assert sorted(names_in_wheel(built.wheel)) == sorted(shipped_on_disk())


def test_the_sdist_holds_the_same_and_makes_the_same_wheel(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        held = {member.name.split("/", 1)[-1] for member in archive.getmembers() if member.isfile()}
    made = {name for name in held if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert sorted(held - made) == sorted({*shipped_on_disk().values(), *SHIPPED_PAGES})
    assert names_in_wheel(built.wheel_of_sdist) == names_in_wheel(built.wheel)


def test_what_is_published_is_small(built: Built) -> None:
    assert max(path.stat().st_size for path in (built.wheel, built.sdist)) < 25_000_000


def test_the_wheel_installed_elsewhere_runs(built: Built, tmp_path: Path) -> None:
    """In an empty folder, with this environment's other packages: nothing may come from the checkout."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*command, str(built.wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*words: str) -> str:
        ran = subprocess.run(
            words, cwd=empty, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    where = "import deepspec, deepspec_strategies as s; print(deepspec.__file__, s.__file__, sep='\\n')"
    assert all(Path(file).is_relative_to(installed) for file in run(sys.executable, "-c", where).splitlines())
    script = str(installed / "bin" / "deepspec")
    assert {row["name"] for row in json.loads(run(script, "plugins", "--json"))} >= {"core", "dspark"}
    assert run(script, "generate", "--prompt", "import os", "--max-tokens", "4", "--seed", "1", "--quiet")
    assert json.loads(run(script, "check", "dspark", "--json"))["passed"]
    assert "a working plugin" in run(script, "plugins", "new", "two-back", "--out", str(tmp_path / "made"))
    assert list(empty.iterdir()) == []


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
