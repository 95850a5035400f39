"""The example scripts run as a reader runs them, learn, leave nothing behind and use public names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
#: What docs/plugins.md calls public, and what a script needs to be its own plugin and to run itself.
PUBLIC = {"", "config", "interfaces", "nn", "plugins", "strategy", "testing", "types"}


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
def test_an_example_is_short_and_uses_public_names(example: Path) -> None:
    text = example.read_text()
    assert len(text.splitlines()) <= 150
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    modules = {node.module.partition(".") for node in imported}
    assert {rest for package, _, rest in modules if package == "deepspec"} <= PUBLIC
