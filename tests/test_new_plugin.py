"""``deepspec plugins new``: what it writes works as plugins/README.md says; bad names are refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepspec.errors import ConfigError
from deepspec.new_plugin import new_plugin, plugin_files
from tests import tiny_runs
from tests.command_line import run

PLUGINS = Path(__file__).parents[1] / "plugins"
#: The plugin of plugins/README.md.
NAME = "two-back"
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]


def test_the_plugin_in_the_repository_is_what_the_template_gives() -> None:
    files, template = plugin_files("template"), PLUGINS / "template"
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        for path, text in files.items():
            (template / path).parent.mkdir(parents=True, exist_ok=True)
            (template / path).write_text(text, encoding="utf-8")
    assert {path: (template / path).read_text(encoding="utf-8") for path in files} == files
    found = {
        path.relative_to(template) for kind in ("py", "toml", "md") for path in template.rglob(f"*.{kind}")
    }
    assert found == set(files)


class Reader:
    """Somebody who types the commands of plugins/README.md, in an environment of their own.

    What needs torch runs in this process, with that environment's packages before its own, and is small.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        monkeypatch.chdir(folder)
        venv.create(folder / "env", symlinks=True)
        self._python = folder / "env" / "bin" / "python"
        [self._site] = (folder / "env").glob("lib/python*/site-packages")
        packages = sysconfig.get_path("purelib")  # what this environment has, editable installs included
        (self._site / "here.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
        # Positions for the prompts of the shipped tasks in a tokenizer of bytes.
        target = tiny_runs.save_target(folder / "target", max_position_embeddings=8192)
        text = tiny_runs.save_text(folder / "text.jsonl")
        sizes = ("data.sequence_length=64", "data.held_out_fraction=0.2", "train.sequences_per_step=2")
        self._sizes: dict[str, list[str | Path]] = {
            "train": ["--target", target, "--data", text, "--steps", "2", "--device", "cpu"],
            "eval": ["--num-prompts", "1", "--max-tokens", "4"],
        }
        self._sizes["train"] += [word for size in sizes for word in ("--set", size)]

    def types(self, line: str) -> str:
        """Run one line; gives what it printed."""
        program, *words = shlex.split(line)
        if program == "cd":
            self.monkeypatch.chdir(words[0])
            return ""
        if program == "pip":
            return self.python("-m", "pip", *words, *OFFLINE)
        if program == "pytest":
            return self.python("-m", "pytest", "-q", "-p", "no:randomly")
        self.monkeypatch.syspath_prepend(str(Path.cwd()))
        self.monkeypatch.syspath_prepend(str(self._site))
        ran = run(*words, *self._sizes.get(words[0], []))
        assert ran.code == 0, ran.err
        return ran.out

    def python(self, *words: str) -> str:
        """Run the environment's own Python."""
        command = [str(self._python), *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    yield Reader(tmp_path, monkeypatch)
    for name in [name for name in sys.modules if name.startswith("deepspec_two_back")]:
        del sys.modules[name]


def test_the_commands_of_the_walk_through_do_what_it_says(reader: Reader) -> None:
    page = (PLUGINS / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    printed = {line: reader.types(line) for block in blocks for line in block.splitlines()}
    assert f"deepspec train --strategy {NAME}" in printed[f"deepspec plugins new {NAME}"]
    assert "3 passed" in printed["pytest"]
    listed = [line.split()[:3] for line in printed["deepspec plugins"].splitlines()]
    assert [NAME, f"deepspec-{NAME}", "0.1.0"] in listed
    assert "FAILED" not in printed[f"deepspec check {NAME}"] + printed[f"deepspec check head:{NAME}"]
    state = Path("runs/first/checkpoints/step-000002/state.json")
    assert json.loads(state.read_text())["step"] == 2
    [measured] = (printed[line] for line in printed if line.startswith("deepspec eval"))
    assert NAME in measured
    assert list(Path("dist").glob("deepspec_two_back-*.whl"))
    reader.python("-c", "import deepspec_two_back, sys; sys.exit('torch' in sys.modules)")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Two_Back", "'Two_Back' cannot name a plugin; allowed are lower-case .* try 'two-back'"),
        ("2back", "'2back' cannot name a plugin; allowed are .* starting with a letter$"),
        ("", "'' cannot name a plugin"),
        ("back\n", "cannot name a plugin; .* try 'back'"),
        ("../back", "cannot name a plugin; .* try 'back'"),
        ("naïve", "cannot name a plugin"),
        ("deepspec-back", "called deepspec-NAME already; give 'back'"),
        ("core", "'core' already names what plugin 'core' of deepspec brings"),
        ("markov", "'markov' already names what plugin 'core' of deepspec brings"),
        ("strategies", "a module 'deepspec_strategies' is installed"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        new_plugin(name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not an empty folder; choose another --out"):
        new_plugin(NAME, tmp_path)
    with pytest.raises(ConfigError, match=r"notes.txt exists and is not an empty folder"):
        new_plugin(NAME, tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"notes.txt/below cannot be written: .*; choose another --out"):
        new_plugin(NAME, tmp_path / "notes.txt" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    assert new_plugin(NAME, tmp_path) == tmp_path
    assert (tmp_path / "deepspec_two_back" / "head.py").is_file()


def test_options_of_the_list_do_not_go_with_new() -> None:
    ran = run("plugins", "--json", "new", NAME)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--json goes with the list" in ran.err
