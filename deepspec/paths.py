"""Where files are: the cache root, run folders, and the data that ships with the package."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


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
