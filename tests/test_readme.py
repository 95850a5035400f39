"""The README: its code runs, and its numbers are those of the records."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import records
import typer

from deepspec import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 40


def shell_lines() -> list[str]:
    """The lines of the README's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", shell_lines())
def test_every_command_exists_with_its_options(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    assert program == "deepspec"
    command, context = typer.main.get_command(cli.app), None
    while hasattr(command, "resolve_command"):
        context = command.make_context(program, list(words), parent=context)
        program, command, words = command.resolve_command(context, words)
    command.make_context(program, words, parent=context)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_measured_numbers_are_those_of_the_newest_records() -> None:
    measured = README.split(records.BEGIN)[1].split(records.END)[0].strip()
    assert measured == records.tables().strip()
