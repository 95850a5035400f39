"""The file of samples: torn anywhere it is gone on with, and what is another's is refused untouched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deepspec.data.forms import Columns
from deepspec.errors import ConfigError, DataError, ResourceError
from deepspec.regenerate import journal as journal_module
from deepspec.regenerate.journal import Journal
from deepspec.regenerate.numbers import NumberSet
from deepspec.sampling import SamplingParams
from tests.regenerate.asking import ask, left_out, rows
from tests.regenerate.conftest import save_source

MADE = {"settings": {"temperature": 1.0}, "writer": {"model": "m"}}


def sample(number: int) -> dict[str, object]:
    return {"text": f"tëxt {number}\n", "provenance": {"number": number}}


def write(path: Path, *numbers: int) -> bytes:
    with Journal(path, MADE, {}) as journal:
        for number in numbers:
            journal.add(number, sample(number))
        journal.leave_out(50, {"kind": "cut"})
        journal.leave_out(51, {"kind": "failed"})
        assert 50 in journal.done
        assert 51 not in journal.done
    return path.read_bytes()


def test_cut_at_any_byte_what_is_whole_is_kept_and_the_rest_is_done_again(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write(path, 3, 1, 2)
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    edges = [end + by for end in (0, *ends) for by in (-1, 0, 1)]
    for size in {*range(0, len(whole), 9), *edges} & set(range(len(whole) + 1)):
        path.write_bytes(whole[:size])
        with Journal(path, MADE, {}) as journal:
            kept = [number for number in (3, 1, 2) if number in journal.done]
            assert kept == [3, 1, 2][: sum(end <= size for end in ends)]
            for number in {1, 2, 3} - set(kept):
                journal.add(number, sample(number))
        assert [row["provenance"]["number"] for row in rows(path)] == [1, 2, 3]


def test_bytes_that_a_power_cut_left_empty_are_cut(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write(path, 1, 2)
    path.write_bytes(whole + bytes(200_000))
    with Journal(path, MADE, {}):
        pass
    assert path.read_bytes() == whole


def test_what_failed_is_tried_again_and_what_was_left_out_is_not(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, 1)
    side = tmp_path / "out.jsonl.left-out"
    side.write_bytes(side.read_bytes() + b'{"number": 52, "ki')
    with Journal(path, MADE, {}) as journal:
        assert 50 in journal.done
        assert not {51, 52} & {number for number in range(60) if number in journal.done}
    assert [line["number"] for line in left_out(path)] == [50]


def test_other_settings_are_named_and_refused_untouched(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write(path, 1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = {"settings": {"temperature": 0.5, "top_k": 3}, "writer": {"model": "m"}}
    with pytest.raises(ConfigError) as raised:
        Journal(path, other, {})
    assert "settings.temperature 1.0 instead of 0.5, settings.top_k null instead of 3; give" in str(
        raised.value
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    path.unlink()  # then there is nothing to protect
    with Journal(path, other, {}) as journal:
        assert len(journal.done) == 0
        journal.add(1, sample(1))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["rows", "params", "columns"])
def test_another_source_or_other_settings_are_refused(server, source, tmp_path, change):
    out = tmp_path / "out.jsonl"
    ask(server, source, out)
    changes = {
        "rows": {},
        "params": {"params": SamplingParams(seed=4, max_tokens=16)},
        "columns": {"columns": Columns({}, as_chat=True)},
    }[change]
    if change == "rows":
        source.write_text(source.read_text().replace("question 4", "question 5"))
    words = {"rows": "source.fingerprint", "params": "settings.seed 3 instead of 4", "columns": "source.chat"}
    with pytest.raises(ConfigError, match=words[change]):
        ask(server, source, out, **changes)


def test_more_rows_of_the_same_source_and_the_same_source_elsewhere_go_on(server, source, tmp_path):
    out = tmp_path / "out.jsonl"
    ask(server, source, out, limit=10)
    moved = source.rename(tmp_path / "moved.jsonl")
    report = ask(server, moved, out, concurrency=1)
    assert (report.num_before, report.num_written) == (10, 30)
    assert [row["provenance"]["number"] for row in rows(out)] == list(range(1, 41))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "no line of this command"),
        (b'{"text": "a"}', "no line of this command"),
        (json.dumps(sample(1)).encode(), "sample 1 is there twice"),
    ],
)
def test_a_line_of_something_else_is_named(tmp_path, line, words):
    path = tmp_path / "out.jsonl"
    whole = write(path, 1, 2)
    path.write_bytes(whole + line + b"\n")
    with pytest.raises(DataError, match=rf"out\.jsonl:3: {words}"):
        Journal(path, MADE, {})
    assert path.read_bytes() == whole + line + b"\n"


def test_a_file_that_is_not_of_this_command_is_refused_untouched(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    for settings in (None, "{", '{"identity": 3}'):
        if settings is not None:
            (tmp_path / "out.jsonl.settings.json").write_text(settings)
        with pytest.raises(ConfigError, match="out.jsonl exists, and .* is not beside it or is damaged"):
            Journal(path, MADE, {})
    assert path.read_text() == "mine\n"
    with pytest.raises(ConfigError, match="is a folder"):
        Journal(tmp_path, MADE, {})


def test_where_nothing_was_written_nothing_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError), Journal(tmp_path / "new" / "out.jsonl", MADE, {}):
        _ = 1 / 0
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(path, *arguments):
        raise PermissionError(30, "Read-only file system", str(path))

    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written: .*choose another --out"):
        Journal(tmp_path / "file" / "out.jsonl", MADE, {})
    monkeypatch.setattr(journal_module.os, "open", refuse)
    with pytest.raises(
        ResourceError, match=r"out\.jsonl cannot be written: .*Read-only.*another --out"
    ) as raised:
        Journal(tmp_path / "out.jsonl", MADE, {})
    assert "\n" not in str(raised.value)


def test_a_write_that_stops_half_way_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write_some, calls = os.write, []

    def full(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write_some(file, data[:5])

    with Journal(path, MADE, {}) as journal:
        journal.add(1, sample(1))
        monkeypatch.setattr(journal_module.os, "write", full)
        with pytest.raises(ResourceError, match=r"No space left.*kept \(1\): the same command goes on"):
            journal.add(2, sample(2))
        monkeypatch.undo()
        assert 2 not in journal.done
        journal.add(3, sample(3))
    assert [row["provenance"]["number"] for row in rows(path)] == [1, 3]


def test_a_file_among_those_to_read_is_refused(server, tmp_path):
    save_source(tmp_path / "source.jsonl", 4)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"new\.jsonl is among the files to read; choose another --out"):
        ask(server, tmp_path, tmp_path / "new.jsonl")
    assert sorted(tmp_path.iterdir()) == before


def test_numbers_take_a_bit_each():
    numbers = NumberSet()
    assert [numbers.add(number) for number in (0, 7, 8, 7, 100_000)] == [True, True, True, False, True]
    assert [number for number in range(10) if number in numbers] == [0, 7, 8]
    assert len(numbers) == 4
    for number in range(200_000):
        numbers.add(number)
    assert len(numbers) == 200_000
    assert len(numbers._bits) <= 50_000
