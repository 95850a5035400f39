"""Rows of JSON lists and Parquet: the same as of lines, read by and by, and one clear line for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from deepspec.data import rows
from deepspec.data.examples import ChatExample, Message, TextExample, as_record, parse_example
from deepspec.data.rows import read_examples, read_rows
from deepspec.errors import DataError

RECORDS = [
    {"text": "one, ] with [ and } in it"},
    {"prompt": "p", "response": 'naïve \u2028 \\ " quoted', "complete": False},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "three"}]},
]


def listed(file: Path) -> list[dict[str, object]]:
    return [record for _, record in read_rows(file)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_json_list_is_read_whatever_is_read_at_once(tmp_path, monkeypatch, indent, size):
    monkeypatch.setattr(rows, "_CHUNK_CHARACTERS", size)
    file = tmp_path / "a.json"
    file.write_text("\n " + json.dumps(RECORDS, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    assert listed(file) == RECORDS
    assert [source for source, _ in read_rows(file)] == [f"{file}:{number}" for number in (1, 2, 3)]


def test_a_json_file_may_hold_lines(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert listed(file) == RECORDS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a"}, {"text": "b"', ":2: not JSON"),
        ('[{"text": "a"} {"text": "b"}]', ":2: not JSON: a comma or ] is missing"),
        ('[{"text": "a"}', ":2: not JSON: a comma or ] is missing"),
        ("[3]", ":1: a row is one object"),
        ("[" * 100_000, "JSON"),
        ("[]", ": the file is empty"),
        ("", ": the file is empty"),
    ],
)
def test_a_json_list_that_is_none_is_named_with_the_row(tmp_path, content, said):
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        listed(file)
    assert str(caught.value).startswith(f"{file}")
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_an_error_in_a_list_too(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'[{"text": "\xff"}]')
    with pytest.raises(DataError, match=r"a\.json: not UTF-8"):
        listed(file)


def test_parquet_rows_have_no_keys_that_are_null(tmp_path):
    file = tmp_path / "a.parquet"
    keys = {key: None for record in RECORDS for key in record}
    parquet.write_table(pa.Table.from_pylist([{**keys, **record} for record in RECORDS]), file)
    assert listed(file) == RECORDS


def test_a_folder_gives_its_parquet_files_as_well(tmp_path):
    parquet.write_table(pa.Table.from_pylist([{"text": "b"}]), tmp_path / "b.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "notes.json").write_text("{}")
    found = read_examples(tmp_path)
    expected = [("a.jsonl", "a"), ("b.parquet", "b")]
    assert found == [TextExample(f"{tmp_path / name}:1", text) for name, text in expected]


def test_what_is_no_parquet_is_one_line(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet") as caught:
        listed(file)
    assert "\n" not in str(caught.value)


def test_messages_may_call_tools_and_are_written_as_they_were_read():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    record = {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "so"},
            {"role": "tool", "content": "5", "name": "f", "tool_call_id": "1"},
        ],
        "tools": [call],
    }
    example = parse_example(record, "f:1")
    extra = {"tool_calls": [call], "reasoning_content": "so"}
    assert isinstance(example, ChatExample)
    assert example.messages[1] == Message("assistant", "", extra)
    assert as_record(example) == record
    assert [as_record(parse_example(one, "f:1")) for one in RECORDS] == RECORDS


def test_a_call_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    example = parse_example({"messages": [{"role": "user", "content": "hi"}, call]}, "f:1")
    assert isinstance(example, ChatExample)
    assert example.messages[1].content == ""
