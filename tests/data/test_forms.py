"""Other people's columns, and data sets by name: what is found, what is ignored, what is said otherwise."""

from __future__ import annotations

import datasets
import pytest

from deepspec.data.examples import (
    ChatExample,
    Message,
    ResponseExample,
    TextExample,
    as_record,
    parse_example,
)
from deepspec.data.forms import Columns, parse_renames, prompt_of
from deepspec.data.prompts import ChatPrompt, TextPrompt
from deepspec.data.sources import read_sources
from deepspec.errors import DataError

TALK = (Message("user", "a"), Message("assistant", "b"))


def read(row, **options):
    return Columns(options.pop("renamed", {}), **options).example(row, "f:1")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"turns": ["a", "b"]},
        {"turns": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]},
        {"turns": ["a", "b"], "tools": "[]"},
    ],
)
def test_conversations_are_found_in_each_usual_form(row):
    assert read(row) == (ChatExample("f:1", TALK), [])


def test_tools_may_be_json_text():
    example, _ = read({"turns": ["a", "b"], "tools": '[{"name": "f"}]'})
    assert example == ChatExample("f:1", TALK, ({"name": "f"},))
    with pytest.raises(DataError, match='f:1: "tools" is text, and not JSON'):
        read({"turns": ["a", "b"], "tools": "f"})


def test_the_richest_form_is_taken_and_the_other_columns_are_named():
    row = {"text": "t", "prompt": "p", "response": "r", "id": 3, "turns": ["a", "b"]}
    assert read(row) == (ChatExample("f:1", TALK), ["id", "prompt", "response", "text"])
    del row["turns"]
    assert read(row) == (ResponseExample("f:1", "p", "r"), ["id", "text"])
    assert read({"text": "t", "complete": False}) == (TextExample("f:1", "t", False), [])


def test_columns_can_be_renamed_and_put_through_the_chat_template():
    row = {"question": "a", "answer": "b"}
    renamed = parse_renames(["question=prompt", "answer=response"])
    assert read(row, renamed=renamed) == (ResponseExample("f:1", "a", "b"), [])
    assert read({**row, "prompt": "c"}, renamed=renamed) == read({"prompt": "c", **row}, renamed=renamed)
    assert read({**row, "prompt": "c"}, renamed=renamed)[0].prompt == "a"
    assert read(row, renamed=renamed, as_chat=True) == (ChatExample("f:1", TALK), [])
    cut = read({"prompt": "a", "response": "b", "complete": False}, as_chat=True)
    assert cut == (ChatExample("f:1", TALK, is_complete=False), [])


def test_a_conversation_may_be_marked_as_cut_off_whatever_its_form():
    for row in (
        {"turns": ["a", "b"]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ):
        example, ignored = read({**row, "complete": False})
        assert (example, ignored) == (ChatExample("f:1", TALK, is_complete=False), [])
        assert parse_example(as_record(example), "f:1") == example


def asked(row, **options):
    return Columns({}, **options).prompt(row, "f:1", text_characters=9)


def test_what_a_row_asks_needs_no_answer():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert asked({"messages": messages, "id": 3}).turns == (2,)
    assert asked({"prompt": "a"}) == asked({"prompt": "a", "response": "b"}) == TextPrompt("f:1", "a")
    assert asked({"prompt": "a"}, as_chat=True) == ChatPrompt("f:1", (Message("user", "a"),))
    assert asked({"turns": ["a", "b", "c"], "tools": "[]"}).turns == (1, 3)
    with pytest.raises(DataError, match="f:1: a row needs messages, .*, prompt, or text; given: response"):
        asked({"response": "b"})
    with pytest.raises(DataError, match='f:1: no message has the role "user"'):
        asked({"messages": messages[:1]})


def test_turns_are_written_but_for_greetings_and_calls_that_are_answered():
    call = {"tool_calls": [{"function": {"name": "f"}}]}
    said, called = {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "", **call}
    user, tool = {"role": "user", "content": "a"}, {"role": "tool", "content": "5"}
    assert asked({"messages": [said, user, said, user, said]}).turns == (2, 4)
    assert asked({"messages": [user, called, tool, said, user, called]}).turns == (3, 5)
    assert asked({"messages": [user, called, tool]}).turns == (3,)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("one two three four", "one two"),
        ("one two four five", "one two"),
        ("one  two\nthree four", "one  two"),
        ("onetwothreefourfive", "onetwothr"),
        ("one two", "one"),
        ("ab", "a"),
        ("a", "a"),
        ("  a   b   c   d", "  a   b"),
    ],
)
def test_of_running_text_the_beginning_is_the_prompt_up_to_a_blank(text, part):
    assert asked({"text": text}) == TextPrompt("f:1", part)


@pytest.mark.parametrize("rename", ["question", "=prompt", "question=", "question=quest"])
def test_a_rename_that_is_none_says_what_can_be(rename):
    with pytest.raises(
        DataError, match=rf"--rename '{rename}': write OLD=NEW, where NEW is one of complete, "
    ):
        parse_renames([rename])


def test_what_has_no_known_form_is_named_with_its_columns():
    with pytest.raises(DataError, match="f:1: a row needs messages, .*; given: answer, question; --rename"):
        read({"question": "a", "answer": "b"})
    with pytest.raises(DataError, match="f:1: message 1: \"from\" is 'robot'; known are assistant, gpt"):
        read({"conversations": [{"from": "robot", "value": "a"}]})
    with pytest.raises(DataError, match='f:1: "messages" must be a list of messages, not text'):
        read({"turns": "a"})


def test_two_examples_are_the_same_when_they_ask_the_same():
    other = ChatExample("g:1", (TALK[0], Message("assistant", "c"), Message("user", "d")))
    assert prompt_of(ChatExample("f:1", TALK)) == prompt_of(other) == "user: a"
    assert prompt_of(ResponseExample("f:1", "p", "r")) == "p"
    assert prompt_of(ResponseExample("f:1", "", "r")) == prompt_of(TextExample("f:1", "r")) == "r"


def test_a_data_set_is_read_by_name_subset_and_split(monkeypatch):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"text": "a", "id": None}, {"text": "b", "id": 2}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    read_back = list(read_sources(["owner/name:test[:2]"], subset="main"))
    assert read_back == [
        ("owner/name:main:test[:2]:1", {"text": "a"}),
        ("owner/name:main:test[:2]:2", {"text": "b", "id": 2}),
    ]
    assert next(read_sources(["plain"]))[0] == "plain:train:1"
    assert asked == [(("owner/name", "main"), {"split": "test[:2]"}), (("plain", None), {"split": "train"})]


def test_a_data_set_that_is_not_here_is_one_line_that_says_why():
    with pytest.raises(DataError) as caught:
        next(read_sources(["owner/absent:test"]))
    assert str(caught.value) == (
        "data set 'owner/absent', split 'test': no file or folder has this name here, the data set is not "
        "in the local cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set; give a JSONL, JSON or "
        "Parquet file"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("Config name is missing.\nPick one of ['main']"),
            "several subsets; give one with --subset",
        ),
        (ValueError('Unknown split "test".'), 'cannot be had (ValueError: Unknown split "test".)'),
        (ConnectionError("no route"), "is not in the local cache"),
    ],
)
def test_other_reasons_are_told_apart(monkeypatch, error, said):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as caught:
        next(read_sources(["owner/name:test"]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["absent.jsonl", "./absent", "absent/*.txt"])
def test_what_looks_like_a_path_is_no_data_set(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder|the glob matches no file"):
        next(read_sources([path]))
