"""The example scripts run as a reader runs them, learn, are short and leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_learns(example: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.match(r"deepspec check: \d+ properties hold\n", ran.stdout)
    found = re.findall(r"step \d+: loss ([\d.]+), expected accepted length ([\d.]+)", ran.stdout)
    (loss, length), (later_loss, later_length) = ((float(a), float(b)) for a, b in found)
    assert later_loss < loss - 1
    assert later_length > length
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 150
