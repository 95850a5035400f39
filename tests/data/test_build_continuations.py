"""Continuations as training lines: whole characters, and an end only where the target wrote one."""

from __future__ import annotations

import json
import sys

import pytest

from deepspec.data import build_continuations
from deepspec.data.build_continuations import as_line
from deepspec.engine import Completion
from deepspec.paths import asset
from tests import tiny_tokenizer

TOKENIZER = tiny_tokenizer.tokenizer()


def ids(text):
    return tuple(TOKENIZER(text)["input_ids"])


def line(prompt, response, reason):
    return as_line(Completion(0, prompt, response, reason), TOKENIZER)


def test_what_the_target_ended_is_complete_and_what_the_maximum_cut_is_not():
    end = (TOKENIZER.eos_token_id,)
    assert json.loads(line(ids("a"), ids("bé") + end, "stop")) == {"prompt": "a", "response": "bé"}
    cut = {"prompt": "a", "response": "bé", "complete": False}
    assert json.loads(line(ids("a"), ids("bé"), "length")) == cut


def test_half_a_character_at_a_cut_is_left_out():
    assert json.loads(line(ids("a"), ids("bé")[:-1], "length"))["response"] == "b"
    assert line(ids("a"), ids("é")[:-1], "length") == ""


def test_bytes_that_are_no_text_give_no_line():
    half = ids("é")[:-1]
    assert line(ids("a"), half + ids("b"), "length") == ""
    assert line(ids("a") + half, ids("b"), "length") == ""
    assert line(ids("a"), (TOKENIZER.eos_token_id,), "stop") == ""


def test_a_special_token_that_is_spelled_out_gives_no_line():
    pieces = ids("<ma") + ids("sk>")
    assert TOKENIZER.mask_token_id not in pieces
    assert line(ids("a"), pieces, "length") == ""
    assert line(pieces, ids("a"), "length") == ""


def test_a_wrong_command_line_is_refused_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(build_continuations, "load_target", lambda _: pytest.fail("the target was loaded"))
    monkeypatch.setattr(sys, "argv", ["build_continuations"])
    with pytest.raises(SystemExit, match="2"):
        build_continuations.main()


def test_the_shipped_lines_are_text_and_most_were_cut_at_the_maximum():
    lines = asset("demo-text/continuations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert not any("\N{REPLACEMENT CHARACTER}" in row["prompt"] + row["response"] for row in rows)
    complete = [row for row in rows if row.get("complete", True)]
    assert 0.02 < len(complete) / len(rows) < 0.1
