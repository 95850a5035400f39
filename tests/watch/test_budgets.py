"""Length budgets: a function of 60 lines, a source file of 320; what is longer wants to be two things."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("deepspec", "strategies", "plugins", "examples", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
FUNCTION_LINES, FILE_LINES, TEST_FILE_LINES = 60, 320, 480


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = TEST_FILE_LINES if path.is_relative_to(ROOT / "tests") else FILE_LINES
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The signature is not counted: a command has a parameter for each of its options.
            length = node.body[-1].end_lineno - node.body[0].lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
