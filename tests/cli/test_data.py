"""``deepspec data``: the report, a folder that trains, tokens that can be read with and without colour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from deepspec.cli import data
from deepspec.data.forms import FORMS
from tests.command_line import run
from tests.tiny_runs import config, save_target, save_text

TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes,\nÆ."}]
SHOWN = """\
«supervised» context, one│two tokens, ⏎ line break

{file}:1: 32 tokens, 9 supervised
[│u│s│e│r│]│H│i│?│<end>│⏎
[│a│s│s│i│s│t│a│n│t│]«Y│e│s│,│⏎
�│�│.│<end>»⏎

"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": TALK, "id": 3}) + "\n")
    return file


def test_what_was_prepared_is_what_training_validates_on(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = save_text(tmp_path / "text.jsonl")
    ran = run("data", "prepare", text, "--out", "new", "--target", target, "--held-out", "0.2", "--json")
    assert (ran.code, ran.err) == (0, "")
    held_out = ran.json["held_out"]["num_examples"]
    assert ran.json["schema"] == 1
    assert (ran.json["num_rows"], ran.json["train"]["num_examples"]) == (12, 12 - held_out)
    settings = config(target, tmp_path / "new", train={"num_steps": 1})
    Path("run.json").write_text(settings.model_dump_json(exclude={"out"}))
    ran = run("train", "--config", "run.json", "--out", "trained", "--no-eval", "--json")
    assert ran.code == 0, ran.err
    assert f"validating on {tmp_path}/new/held-out.jsonl" in ran.err


def test_the_report_can_be_read_and_names_what_was_left_out(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "abc", "id": n} for n in range(3)] + [{"text": "d" * 300}, {"id": 3}]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run("data", "prepare", "a.jsonl", "--out", "new", "--target", target, "--held-out", "0")
    assert ran.code == 0, ran.err
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines[:6] == [
        "                 train.jsonl",
        "examples         2",
        "documents        2",
        "tokens           305",
        "supervised       305",
        "mean length      152",
    ]
    assert lines[11:] == [
        "5 rows read; left out: 2 repeated prompts, 1 that cannot be used",
        f"  a.jsonl:5: a row needs {FORMS}; given: id; --rename OLD=NEW names a column",
        "columns that were not read: id",
        "documents longer than a row of 256 tokens, which will be cut: 1",
        "train on it: deepspec train --data new",
    ]


def test_tokens_are_shown_with_what_is_supervised(target, talk):
    ran = run("data", "show", talk, "--target", target)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == SHOWN.format(file=talk)


def test_json_says_of_each_token_whether_it_is_supervised(target, talk):
    ran = run("data", "show", talk, "--target", target, "--json")
    [document] = ran.json["documents"]
    assert (document["source"], document["problem"]) == (f"{talk}:1", None)
    supervised = [token["text"] for token in document["tokens"] if token["supervised"]]
    assert supervised == ["Y", "e", "s", ",", "\n", "�", "�", ".", "<end>"]
    assert document["tokens"][0].keys() == {"id", "text", "supervised"}


def test_a_row_that_is_not_there_is_an_error(target, talk):
    ran = run("data", "show", talk, "--target", target, "--first", "2")
    assert (ran.code, ran.err) == (2, f"error: {talk} has no row 2; give a smaller --first\n")


def test_lines_are_folded_between_tokens_and_colours_tell_the_supervised(target, talk, monkeypatch, capsys):
    rows = [{"prompt": "word " * 40, "response": "answer " * 20}]
    talk.write_text(json.dumps(rows[0]) + "\n")
    shown = {}
    for no_color in (False, True):
        console = Console(width=80, force_terminal=True, no_color=no_color, highlight=False)
        monkeypatch.setattr(data, "stdout", lambda console=console: console)
        with console.capture() as captured:
            assert run("data", "show", talk, "--target", target).code == 0
        shown[no_color] = captured.get()
    assert "\x1b[1;32ma" in shown[False]
    assert "\x1b[4m" in shown[False]
    assert "«" not in shown[False]
    assert "\x1b" not in shown[True]
    assert "«a│n│s│w│e│r│ " in shown[True]
    assert max(map(len, shown[True].splitlines()[3:])) == 80
