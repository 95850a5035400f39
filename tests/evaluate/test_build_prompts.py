"""Cutting prompts out of source files: where cuts may begin and end, and what is left out."""

from __future__ import annotations

import ast
import dataclasses
import random

from deepspec.data.local_text import SourceFile
from deepspec.evaluate.build_prompts import (
    Prompt,
    Recipe,
    choose,
    code_prompts,
    comment_blocks,
    is_known,
    prose_prompts,
    squeeze,
)

RECIPE = Recipe(
    code=(60, 120), code_left=20, prose=(20, 60), prose_left=10, probe=20, num_prompts=3, per_module=2
)


def source(tmp_path, text, name="module.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return SourceFile(name, path)


def test_code_cuts_begin_at_top_level_statements_with_their_decorators_and_do_not_overlap(tmp_path):
    functions = [
        f"@cache\ndef function_{i}(argument):\n    first = argument + {i}\n    return first * 2\n\n"
        for i in range(9)
    ]
    text = "".join(functions)
    prompts = [p.prompt for p in code_prompts(source(tmp_path, text), RECIPE, random.Random(0))]
    assert len(prompts) >= 3
    end = 0
    for prompt in prompts:
        assert prompt.startswith("@cache\ndef function_")
        assert prompt.endswith("\n")
        assert 60 <= len(prompt) <= 120
        start = text.index(prompt)
        assert start >= end
        end = start + len(prompt)
        assert len(text) - end >= 20


def test_prose_is_broken_off_after_a_word_with_something_left_to_write(tmp_path):
    docstring = "Return the sum of all the numbers that were given so far, or zero when there were none."
    text = f'def f():\n    """{docstring}"""\n\n\n# {docstring.upper()}\n'
    found = [p.prompt for p in prose_prompts(source(tmp_path, text), RECIPE, random.Random(0))]
    assert len(found) == 2
    for prompt, whole in zip(found, (docstring, docstring.upper()), strict=True):
        assert whole.startswith(prompt)
        assert whole[len(prompt)] == " "
        assert 20 <= len(prompt) <= 60


def test_copyright_notices_are_no_prose(tmp_path):
    text = '"""Copyright (c) 2001 of somebody, who reserves all rights there are."""\n'
    assert list(prose_prompts(source(tmp_path, text), RECIPE, random.Random(0))) == []


def test_comment_blocks_are_joined_and_rulers_left_out():
    text = (
        "# One line\n# and another.\nx = 1  # not this\n# ---------------\n    #: Indented one.\n#!/bin/sh\n"
    )
    assert next(iter(comment_blocks(text))) == "One line\nand another."
    assert not any("----" in block and len(block) < 20 for block in comment_blocks(text))


def test_a_prompt_whose_piece_is_in_the_training_text_is_known_whatever_its_layout():
    corpus = squeeze("    # the quick brown fox jumps\n    # over the lazy dog and runs")
    assert is_known("something new and long enough\nfox jumps over\nthe lazy dog", corpus, 20)
    assert not is_known("something new and long enough, with no quick fox in it", corpus, 20)


def test_choosing_drops_known_ones_and_those_that_begin_alike_and_spreads_over_modules():
    candidates = [Prompt(f"{i} " + "beginning of a prompt" * 2, "big.py") for i in range(6)]
    candidates += [Prompt("0 " + "beginning of a prompt" * 2 + " again", "other.py")]
    candidates += [
        Prompt("known text that was trained on", "third.py"),
        Prompt("fresh text, never seen", "third.py"),
    ]
    recipe = dataclasses.replace(RECIPE, num_prompts=4)
    chosen = choose(candidates, "known text that was trained on", recipe, random.Random(0))
    assert [prompt.source for prompt in chosen] == ["big.py", "big.py", "other.py", "third.py"]
    assert chosen[-1].prompt.startswith("fresh")
    assert len({squeeze(prompt.prompt)[:20] for prompt in chosen}) == 4


def test_what_is_cut_is_valid_enough_to_start_from(tmp_path):
    text = "import os\nimport sys\n\n\n" + "def f():\n    return 1\n\n\n" * 10
    for prompt in code_prompts(source(tmp_path, text), RECIPE, random.Random(0)):
        assert ast.parse(text[text.index(prompt.prompt) :])
