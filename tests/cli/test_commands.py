"""The command line as a user meets it: exit codes, one-line errors, JSON. Help and bad input: tests/watch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
