"""The README: its code runs, and its numbers are those of the records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import records

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 40


def test_measured_numbers_are_those_of_the_newest_records() -> None:
    measured = README.split(records.BEGIN)[1].split(records.END)[0].strip()
    assert measured == records.tables().strip()
