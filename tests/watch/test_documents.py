"""README, CONTRIBUTING and docs/: code runs and prints what is shown, commands exist, links lead on."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from deepspec import cli
from deepspec.layers import resolve
from tests.command_line import run

ROOT = Path(__file__).parents[2]
FOLDERS = ("deepspec", "plugins", "strategies")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "plugins" / "README.md"])
LINKED = sorted({*PAGES, *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))})
#: A block, its language and remark, and the output that is shown for it.
BLOCK = re.compile(
    r"^```(\w+)( no-run)?\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", flags=re.DOTALL | re.MULTILINE
)
#: Commands that need only what ships: no network, hours, run of the reader's, or plugin that a page writes.
AT_ONCE = re.compile(r"deepspec (check|config|doctor|generate|plugins|runs)\b(?!.*(two-back|survival|runs/))")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """Code and shown output of the blocks of a language that are meant to run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(code, shown or None) for kind, remark, code, shown in found if kind == language and not remark]


def shell_lines() -> list[str]:
    lines = {line for page in PAGES for code, _ in blocks(page, "sh") for line in code.splitlines()}
    return sorted(line for line in lines if line.strip())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run_and_print_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, shown in blocks(page, "python"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page.name, "exec", dont_inherit=True), names)
        assert shown is None or out.getvalue() == shown
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_are_not_run_are_python_at_least() -> None:
    for page in PAGES:
        for kind, remark, code, _ in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind == "python" and remark:
                compile(code, page.name, "exec", dont_inherit=True)


@pytest.mark.parametrize("line", shell_lines())
def test_every_command_exists_with_its_options(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if program == "python":
        assert (ROOT / words[0]).is_file()
        return
    if program in ("cd", "pip", "pytest"):
        return  # tests/test_new_plugin.py runs them
    if program == "torchrun":  # its own options, then the module that every process runs
        module = words.index("-m") + 1
        program, words = words[module], words[module + 1 :]
    assert program == "deepspec"
    command, context = typer.main.get_command(cli.app), None
    while hasattr(command, "resolve_command") and words and not words[0].startswith("-"):
        context = command.make_context(program, list(words), parent=context)
        program, command, words = command.resolve_command(context, words)
    command.make_context(program, words, parent=context)


@pytest.mark.parametrize("line", [line for line in shell_lines() if AT_ONCE.match(line)])
def test_commands_that_need_only_what_ships_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*shlex.split(line, comments=True)[1:])
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name_of)
def test_toml_blocks_are_what_their_first_line_says(page: Path, tmp_path: Path) -> None:
    for code, _ in blocks(page, "toml"):
        file = tmp_path / code.splitlines()[0].removeprefix("# ")
        file.write_text(code, encoding="utf-8")
        if file.name == "pyproject.toml":
            assert tomllib.loads(code)["project"]["entry-points"]["deepspec"]
        else:
            resolve(None, file=str(file)).config()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", link):
            file, _, anchor = link.partition("#")
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), link
            assert not anchor or anchor in anchors(there), link


def test_every_page_of_the_documentation_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == [
        "README.md"
    ]
