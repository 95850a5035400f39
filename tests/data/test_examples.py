"""Reading JSONL: the three forms, what a path may be, and one clear line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepspec.data.examples import ChatExample, Message, ResponseExample, TextExample
from deepspec.data.rows import read_examples
from deepspec.errors import DataError


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode())
    return path


def test_the_three_forms_are_read_with_their_file_and_line(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        '{"text": "one"}',
        "",
        '{"prompt": "", "response": "two"}',
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "three"}]}',
        "",
    )
    assert read_examples(file) == [
        TextExample(f"{file}:1", "one"),
        ResponseExample(f"{file}:3", "", "two"),
        ChatExample(f"{file}:4", (Message("user", "hi"), Message("assistant", "three"))),
    ]


def test_text_and_responses_can_be_marked_as_cut_off(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        '{"text": "one", "complete": false}',
        '{"prompt": "p", "response": "two", "complete": false}',
        '{"text": "three", "complete": true}',
        '{"messages": [{"role": "assistant", "content": "four"}], "complete": false}',
    )
    assert [example.is_complete for example in read_examples(file)] == [False, False, True, False]


def test_how_a_row_was_made_may_stand_beside_it(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "one", "provenance": {"seed": 3}}')
    assert read_examples(file) == [TextExample(f"{file}:1", "one")]


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [example.text for example in read_examples(file)] == ["one", "two"]


def test_line_separators_inside_text_do_not_end_a_line(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "a\u2028b\x85c"}', '{"text": "d"}')
    assert [example.text for example in read_examples(file)] == ["a\u2028b\x85c", "d"]


def test_folders_globs_and_files_name_each_file_once_in_order(tmp_path):
    write(tmp_path / "b.jsonl", '{"text": "b"}')
    write(tmp_path / "a.jsonl", '{"text": "a"}')
    write(tmp_path / "deep" / "c.jsonl", '{"text": "c"}')
    write(tmp_path / "notes.txt", "not data")
    assert [e.text for e in read_examples(tmp_path)] == ["a", "b", "c"]
    assert [e.text for e in read_examples(str(tmp_path / "*.jsonl"))] == ["a", "b"]
    assert [e.text for e in read_examples(str(tmp_path / "**" / "c*.jsonl"))] == ["c"]
    assert [e.text for e in read_examples([tmp_path / "b.jsonl", tmp_path])] == ["b", "a", "c"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    file = write(tmp_path / "part[1].jsonl", '{"text": "x"}')
    assert [e.text for e in read_examples(str(file))] == ["x"]


MALFORMED = {
    '{"text": "a"': "not JSON",
    "[1]": "a list",
    "3": "a number",
    "{}": "given: none",
    '{"text": "a", "id": 3}': '"id", "text"',
    '{"prompt": "a"}': 'given: "prompt"',
    '{"text": "a", "prompt": "b", "response": "c"}': "exactly",
    '{"text": "a", "complete": "no"}': '"complete" must be true or false, not text',
    '{"messages": [], "complete": false}': '"messages" must be a list of messages, not an empty list',
    (
        '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], '
        '"complete": false}'
    ): "the last message is no reply in words",
    '{"text": "a", "provenance": {}, "id": 3}': 'with an optional "complete" and "provenance"',
    '{"text": 3}': '"text" must be text, not a number',
    '{"text": null}': "not missing or null",
    '{"text": ""}': '"text" is empty',
    '{"prompt": "a", "response": ""}': '"response" is empty',
    '{"prompt": ["a"], "response": "b"}': '"prompt" must be text, not a list',
    '{"text": "\\ud800"}': "surrogate",
    '{"messages": []}': "an empty list",
    '{"messages": "hi"}': "must be a list of messages",
    '{"messages": ["hi"]}': "message 1 must be",
    '{"messages": [{"role": "assistant"}]}': 'message 1 must have "role" and "content", and may have "name"',
    '{"messages": [{"role": "assistant", "content": "a", "tool_calls": "f"}]}': '"tool_calls" must be a list',
    '{"messages": [{"role": "assistant", "content": "a", "id": 3}]}': '"id", "role"',
    '{"messages": [{"role": "assistant", "content": "a", "name": 3}]}': '"name" must be text',
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": ["f"]}': '"tools" must be a list',
    '{"messages": [{"role": 1, "content": "a"}]}': '"role" must be text',
    '{"messages": [{"role": "assistant", "content": [{"type": "text"}]}]}': '"content" must be text',
    '{"messages": [{"role": "user", "content": "a"}]}': "nothing is supervised",
    '{"messages": [{"role": "assistant", "content": ""}]}': "nothing is supervised",
    "[" * 100_000: "JSON",
}


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: line[:40])
def test_a_malformed_line_is_named_with_file_and_line(tmp_path, line):
    file = write(tmp_path / "a.jsonl", '{"text": "fine"}', "", line)
    with pytest.raises(DataError) as caught:
        read_examples(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:3: ")
    assert MALFORMED[line] in message
    assert "\n" not in message


def test_bytes_that_are_not_utf8_are_named_with_file_and_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8 \(byte 11"):
        read_examples(file)


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    with pytest.raises(DataError, match=r"a\.jsonl: the file is empty"):
        read_examples(write(tmp_path / "a.jsonl", content))


def test_paths_that_name_nothing_are_errors_that_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_examples(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"the folder holds no \.jsonl or \.parquet file"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match="the glob matches no file"):
        read_examples(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="no data was given"):
        read_examples([])
