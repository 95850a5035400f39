"""Where files are (the cache root, run folders, what ships with the package), and writing them whole."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

#: The name of the target that ships with the package, and of the drafter for it.
DEMO = "demo"


def cache_root() -> Path:
    """``DEEPSPEC_HOME``, else the platform's cache folder; not created here."""
    home = os.environ.get("DEEPSPEC_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("deepspec", appauthor=False))


def runs_root() -> Path:
    """Where runs go unless ``--out`` says otherwise: ``runs/`` in the working directory."""
    return Path("runs")


def asset(name: str) -> Path:
    """A file or folder that ships with the package."""
    return Path(__file__).parent / "assets" / name


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there: the disk that it would be on."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return here


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, so that a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_left(path: Path) -> list[Path]:
    """Remove what processes that were killed had made of ``path``, and name it; the folder must be there."""
    removed = []
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        process = left.name.removeprefix(f".{path.name}.")
        if process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            removed.append(left)
    return removed


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sync(path: Path) -> None:
    """Have the system put a file, or the entries of a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
