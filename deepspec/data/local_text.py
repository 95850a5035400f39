"""Python source text that every installation already has: the standard library and installed packages.

It is split once, here: the demo target was trained on most of the standard library and on some packages.
Other modules of the library are held out for evaluation, and other packages for drafters: the demo target's
train on its own continuations of them, those of other targets on the sources (``default.py``).
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

#: Packages whose sources the demo target is trained on (all are installed with DeepSpec).
TARGET_PACKAGES = (
    "torch",
    "sympy",
    "pandas",
    "numpy",
    "transformers",
    "huggingface_hub",
    "mpmath",
    "pyarrow",
    "fsspec",
)
#: Packages that the demo target never saw, kept for training drafters.
HELD_OUT_PACKAGES = (
    "networkx",
    "datasets",
    "hypothesis",
    "pydantic",
    "pytest",
    "rich",
    "jinja2",
    "click",
    "typer",
    "filelock",
    "dill",
    "anyio",
)
_HELD_OUT_IN_256 = 20
# Tests are left out, as are vendored copies (they would leak held-out packages) and tables of codes.
_SKIPPED_PARTS = frozenset(
    {
        "site-packages",
        "_vendor",
        "vendor",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "encodings",
        "pydoc_data",
    }
)
_MAX_BYTES = 400_000


@dataclass(frozen=True)
class SourceFile:
    """One readable source file: its name below its root (a stable key) and its path."""

    name: str
    path: Path

    def text(self) -> str:
        """The file's text, or "" when it is not valid UTF-8."""
        try:
            return self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return ""


def is_held_out(name: str) -> bool:
    """Whether a standard-library module belongs to evaluation, decided by a hash of its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] < _HELD_OUT_IN_256


def stdlib_files(held_out: bool, root: Path | None = None) -> list[SourceFile]:
    """The standard library's modules on one side of the split, sorted by name."""
    base = root or Path(sysconfig.get_paths()["stdlib"])
    return [file for file in _python_files(base) if is_held_out(file.name) == held_out]


def installed_packages() -> list[str]:
    """Every installed distribution, by its normalised name, but DeepSpec and those held out for drafters."""
    found = {_normalised(d.name) for d in metadata.distributions() if d.name}
    return sorted(found - {_normalised(name) for name in (*HELD_OUT_PACKAGES, "deepspec")})


def package_files(distributions: Sequence[str]) -> list[SourceFile]:
    """Python sources of installed distributions, sorted by name; those not installed are left out."""
    files = []
    for name in distributions:
        try:
            listed = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue
        entries = sorted((e for e in listed if e.suffix == ".py"), key=str)
        found = [SourceFile(e.as_posix(), Path(str(e.locate()))) for e in entries]
        files += [file for file in found if _is_wanted(file)]
    return files


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python_files(root: Path) -> Iterator[SourceFile]:
    for path in sorted(root.rglob("*.py")):
        file = SourceFile(path.relative_to(root).as_posix(), path)
        if _is_wanted(file):
            yield file


def _is_wanted(file: SourceFile) -> bool:
    if _SKIPPED_PARTS.intersection(file.name.split("/")) or not file.path.is_file():
        return False
    return 200 <= file.path.stat().st_size <= _MAX_BYTES
