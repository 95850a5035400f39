"""What ``deepspec data prepare`` leaves in a folder, and which of given files are to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepspec.data.rows import example_files
from deepspec.errors import DataError

REPORT = "data.json"
TRAIN = "train"
HELD_OUT = "held-out"


def split_files(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The files that ``paths`` name: to train on, and those that a prepared folder holds out.

    Raises DataError when there is nothing to train on.
    """
    files = example_files(paths)
    held_out = [file for file in files if is_held_out(file)]
    if len(held_out) == len(files):
        raise DataError(f"{held_out[0]} is held-out text alone; give its folder, {held_out[0].parent}")
    return [file for file in files if file not in held_out], held_out


def is_held_out(file: Path) -> bool:
    """Whether a file is the held-out side of a prepared folder."""
    return file.stem == HELD_OUT and (file.parent / REPORT).is_file()
