"""The command line as a user meets it: help, exit codes, one-line errors, JSON, a quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepspec import cli
from deepspec.cli import failures
from deepspec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PluginError,
    ResourceError,
    TargetError,
    TrainingError,
)

COMMANDS = [
    "train",
    "eval",
    "generate",
    "runs",
    "plugins",
    "config",
    "config show",
    "config schema",
    "doctor",
]


def run(*arguments: str) -> int:
    """The exit code of one command line, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, with nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_describes_every_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for index, line in enumerate(lines):
        if line.startswith(("│ --", "│ *")):
            cells = [
                line.strip("│ ").split("  ")[-1],
                *(rest.strip("│ ") for rest in lines[index + 1 : index + 2]),
            ]
            assert any(" " in cell for cell in cells), f"{line!r} says nothing"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["plugins", "--json"], ["config", "show"]])
def test_what_needs_no_model_answers_quickly_and_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom deepspec.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        assert ran.returncode == 0, ran.stderr
    # The bar is 0.7 s on an idle machine; the best of three leaves room for a busy one.
    assert min(seconds) < 1.5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (TargetError("x"), 2),
        (CheckpointError("x"), 2),
        (PluginError("x"), 2),
        (TrainingError("x"), 1),
        (ResourceError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> int:
        raise error

    assert failures.report_failures(fail, []) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_error_of_many_lines_is_shown_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: object) -> int:
        raise TargetError("first\n  second")

    failures.report_failures(fail, [])
    assert error_line(capsys) == "error: first second"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian"),
        (["train", "--stepz", "3"], "--stepz"),
        (["train", "--steps", "three"], "--steps.*integer"),
        (["train"], "no strategy was given"),
        (["train", "--strategy", "toy-strategy"], "unknown strategy 'toy-strategy'.*reinstall"),
        (["train", "--strategy", "dsparc"], "did you mean 'dspark'"),
        (["train", "--strategy", "dflash", "--set", "head.type=markow"], "did you mean 'markov'.*reinstall"),
        (["train", "--strategy", "dspark", "--set", "head.rnk=3"], "did you mean 'rank'"),
        (["train", "--strategy", "dspark", "--set", "train.num_step=3"], "did you mean 'num_steps'"),
        (["train", "--strategy", "dspark", "--steps", "0"], "train.num_steps = 0"),
        (["train", "--strategy", "dspark", "--config", "absent.toml"], "absent.toml cannot be read"),
        (["train", "--resume"], "--resume needs --out"),
        (["train", "--resume", "--out", "nowhere"], "nowhere holds no run"),
        (["eval"], "RUN"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "demo", "--task-file", "mine.jsonl"], "write NAME=FILE.jsonl"),
        (["generate", "--prompt", "a", "--file", "b"], "give one"),
        (["generate", "--file", "absent.txt"], "absent.txt"),
        (["generate", "--prompt", ""], "prompt is empty"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere"),
        (["generate", "--prompt", "a", "--top-p", "0"], "top_p"),
        (["runs", "nowhere"], "nowhere"),
        (["config", "show", "--set", "sed=3"], "did you mean 'seed'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing_behind(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert re.search(message, error_line(capsys))
    assert list(tmp_path.iterdir()) == []


def test_plugins_json_has_the_keys_that_others_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plugins", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) == {"name", "distribution", "version", "strategies", "parts"} for row in rows)
    assert any(row["strategies"] for row in rows)


def test_a_broken_plugin_is_one_line_and_can_be_blocked(tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("import absent_dependency\n")
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deepspec]\nbroken = broken_plugin\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "from deepspec.cli import main; main(['plugins'])"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith(
        "error: plugin 'broken' (broken_plugin) failed to import: ModuleNotFoundError"
    )
    assert "DEEPSPEC_BLOCK_PLUGINS=broken" in ran.stderr
    environment["DEEPSPEC_BLOCK_PLUGINS"] = "broken"
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, "broken" in ran.stdout) == (0, False)


def test_config_show_names_the_origin_of_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text("[train]\nnum_steps = 7\n")
    arguments = ["--strategy", "dspark", "--config", str(tmp_path / "run.toml"), "--set", "seed=3", "--json"]
    assert run("config", "show", *arguments) == 0
    rows = {row["key"]: (row["value"], row["origin"]) for row in json.loads(capsys.readouterr().out)}
    assert rows["train.num_steps"] == (7, "file")
    assert rows["seed"] == (3, "flag")
    assert rows["strategy.head.type"] == ("markov", "strategy")
    assert rows["train.clip_norm"][1] == "default"


def test_config_schema_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "schema") == 0
    assert "strategy" in json.loads(capsys.readouterr().out)["properties"]


def test_doctor_reports_versions_devices_and_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"]
    assert found["devices"][0]["name"] == "cpu"
    assert found["kernel_backend"]["cpu"] == "reference"
    assert {row["name"] for row in found["plugins"]} >= {"core"}
    assert found["problems"] == []


def test_doctor_fails_when_a_plugin_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepspec import doctor

    def fail() -> None:
        raise PluginError("plugin 'x' is broken")

    monkeypatch.setattr(doctor, "create_plugin_manager", fail)
    assert run("doctor") == 1
    assert "plugin 'x' is broken" in capsys.readouterr().out


def test_runs_of_an_empty_folder_say_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("runs") == 0
    assert "deepspec train" in capsys.readouterr().out
    assert run("runs", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
