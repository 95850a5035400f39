"""Cached tokens: read back as they were made, by what decides them, and done without when damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepspec.data import Message, TextExample, cache, mapped, tokenize, tokenize_once
from deepspec.data.corpus import pieces
from deepspec.data.examples import ChatExample
from deepspec.errors import DataError
from deepspec.paths import cache_root
from tests import tiny_tokenizer

E_ID = tiny_tokenizer.tokenizer().convert_tokens_to_ids("e")
EXAMPLES = [
    TextExample("f:1", "a text of some length"),
    ChatExample("f:2", (Message("user", "Hi?"), Message("assistant", "Yes."))),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder for tokens, of this test alone."""
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    return cache_root() / "tokens"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time something is really tokenised."""
    made: list[int] = []

    def counted(*arguments, **options):
        made.append(1)
        return pieces(*arguments, **options)

    monkeypatch.setattr(cache, "pieces", counted)
    return made


def once(examples=EXAMPLES, tokenizer=None, **options):
    return tokenize_once(
        examples, tokenizer or tiny_tokenizer.tokenizer(), **{"sequence_length": 16, **options}
    )


def assert_same(corpus, other):
    for name in ("tokens", "supervised", "ends", "documents"):
        assert torch.equal(getattr(corpus, name), getattr(other, name))


def test_the_second_run_reads_what_the_first_one_made(calls, folder):
    first, second = once(), once()
    assert len(calls) == 1
    assert_same(first, second)
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"examples": EXAMPLES[:1]},
        {"tokenizer": tiny_tokenizer.tokenizer(begin=True)},
        {"tokenizer": tiny_tokenizer.tokenizer(chat_template=tiny_tokenizer.MARKED_TEMPLATE)},
        {"sequence_length": 17},
        {"reserved_token_ids": (257,)},
    ],
)
def test_another_text_tokenizer_or_setting_is_another_entry(change, calls):
    once()
    once(**change)
    assert len(calls) == 2


def test_text_that_is_refused_is_refused_every_time(folder):
    for _ in range(2):
        with pytest.raises(DataError, match="f:1: the text uses the token"):
            once(reserved_token_ids=(E_ID,))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "foreign", "uneven"])
def test_a_damaged_or_foreign_entry_is_said_and_replaced(damage, calls, folder, caplog):
    first = once()
    (entry,) = folder.iterdir()
    if damage == "cut":
        content = entry.read_bytes()
        entry.unlink()  # the first corpus goes on reading it
        entry.write_bytes(content[:-5])
    elif damage == "foreign":
        save_file({"weights": torch.zeros(3)}, entry)
    else:
        names = ("tokens", "supervised", "ends", "documents")
        save_file({**{name: getattr(first, name) for name in names}, "tokens": first.tokens[1:]}, entry)
    assert_same(once(), first)
    assert "made anew" in caplog.text
    once()
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_said_and_done_without(folder, caplog):
    folder.write_text("no folder")
    once()
    assert "cannot be cached" in caplog.text


def test_a_full_disk_leaves_nothing_behind_and_the_tokens_in_memory(monkeypatch, folder, caplog):
    first = once()
    for entry in folder.iterdir():
        entry.unlink()

    def fail(spools, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped._Spools, "copy_to", fail)
    assert_same(once(), first)
    assert "No space left" in caplog.text
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["an even one", "an odd text"])
def test_tokens_are_read_from_the_file_and_are_those_made_in_memory(text):
    examples = [TextExample("f:1", text), *EXAMPLES]
    found = once(examples)
    assert found.file is not None
    in_memory = tokenize(examples, tiny_tokenizer.tokenizer(), sequence_length=16)
    assert_same(found, in_memory)
    found.release()
    assert_same(found, in_memory)


def test_what_a_killed_process_left_of_an_entry_is_removed(folder):
    once()
    (entry,) = folder.iterdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left = [folder / f".{entry.name}.{number}" for number in (gone.pid, os.getppid())]
    entry.unlink()
    for path in left:
        path.write_bytes(b"half")
    once()
    assert set(folder.iterdir()) == {entry, left[1]}
