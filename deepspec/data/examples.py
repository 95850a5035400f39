"""Reads JSONL examples: ``{"text"}``, ``{"prompt", "response"}`` or ``{"messages"}``, one object a line.

The first two may have ``"complete": false``: the text was cut off, so nothing says that it ends there.
A path is a file, a folder (its ``*.jsonl``, at any depth) or a glob. Whatever cannot be used raises
:class:`~deepspec.errors.DataError` with ``file:line``; nothing is skipped silently except blank lines.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import DataError

FORMS = '{"text"}, {"prompt", "response"} or {"messages"}'
_COMPLETE = "complete"
_GLOB_CHARACTERS = frozenset("*?[")
_MESSAGE_KEYS = frozenset({"role", "content"})


@dataclass(frozen=True)
class TextExample:
    """Running text, all supervised. ``source`` is ``file:line``; what was cut off is incomplete."""

    source: str
    text: str
    is_complete: bool = True


@dataclass(frozen=True)
class ResponseExample:
    """A prompt and its response, joined verbatim; the response is supervised."""

    source: str
    prompt: str
    response: str
    is_complete: bool = True


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class ChatExample:
    """A conversation for the tokenizer's chat template; the assistant's turns are supervised."""

    source: str
    messages: tuple[Message, ...]


Example = TextExample | ResponseExample | ChatExample


def read_examples(paths: str | Path | Sequence[str | Path]) -> list[Example]:
    """All examples of files, folders and globs, in the order given, a folder's files by name."""
    return [
        parse_example(record, source)
        for file in example_files(paths)
        for source, record in read_records(file)
    ]


def example_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that ``paths`` name, each once; raises DataError for a path that names none."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no data was given; name a JSONL file, a folder of them, or a glob")
    return list(dict.fromkeys(file for path in given for file in _expand(str(path))))


def _expand(path: str) -> list[Path]:
    here = Path(path).expanduser()
    if here.is_dir():
        found = sorted(here.rglob("*.jsonl"))
        if not found:
            raise DataError(f"{path}: the folder holds no .jsonl file; each line of one is {FORMS}")
        return found
    if here.exists():
        return [here]
    if _GLOB_CHARACTERS.isdisjoint(path):
        raise DataError(f"{path}: no such file or folder")
    # Path.glob refuses absolute patterns.
    matches = [Path(match) for match in sorted(glob.glob(str(here), recursive=True))]  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(f"{path}: the glob matches no file (in quotes, ** also enters folders)")
    return files


def read_records(file: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a JSONL file, each with its ``file:line``."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    is_empty = True
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        is_empty = False
        source = f"{file}:{number}"
        yield source, _parse_line(line, source)
    if is_empty:
        raise DataError(f"{file}: the file is empty; each line is {FORMS}")


def _parse_line(line: bytes, source: str) -> dict[str, object]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{source}: not usable JSON: nested too deeply") from error
    if not isinstance(record, dict):
        raise DataError(f"{source}: a line is one object, {FORMS}; this one is {_kind(record)}")
    return record


def parse_example(record: dict[str, object], source: str) -> Example:
    """One example of exactly one of the three forms; raises DataError for anything else."""
    keys = set(record)
    if keys - {_COMPLETE} == {"text"}:
        return TextExample(source, text_field(record, "text", source), _is_complete(record, source))
    if keys - {_COMPLETE} == {"prompt", "response"}:
        prompt = text_field(record, "prompt", source, may_be_empty=True)
        response = text_field(record, "response", source)
        return ResponseExample(source, prompt, response, _is_complete(record, source))
    if keys == {"messages"}:
        messages = parse_messages(record["messages"], source)
        if not any(message.role == "assistant" and message.content for message in messages):
            raise DataError(
                f'{source}: no message has the role "assistant" and some content, so nothing is supervised'
            )
        return ChatExample(source, messages)
    given = ", ".join(f'"{key}"' for key in sorted(keys)) or "none"
    raise DataError(
        f'{source}: the keys must be exactly {FORMS}, the first two with an optional "{_COMPLETE}"; '
        f"given: {given}"
    )


def _is_complete(record: dict[str, object], source: str) -> bool:
    value = record.get(_COMPLETE, True)
    if not isinstance(value, bool):
        raise DataError(f'{source}: "{_COMPLETE}" must be true or false, not {_kind(value)}')
    return value


def parse_messages(value: object, source: str) -> tuple[Message, ...]:
    """A conversation; raises DataError unless it is a list of ``{"role", "content"}`` texts."""
    if not isinstance(value, list) or not value:
        raise DataError(f'{source}: "messages" must be a list of messages, not {_kind(value)}')
    messages = []
    for number, item in enumerate(value, start=1):
        where = f"{source}: message {number}"
        if not isinstance(item, dict):
            raise DataError(f'{where} must be {{"role", "content"}}, not {_kind(item)}')
        if set(item) != _MESSAGE_KEYS:
            given = ", ".join(f'"{key}"' for key in sorted(item)) or "none"
            raise DataError(f'{where} must have exactly the keys "role" and "content"; given: {given}')
        role = text_field(item, "role", where)
        messages.append(Message(role, text_field(item, "content", where, may_be_empty=True)))
    return tuple(messages)


def text_field(record: dict[str, object], key: str, source: str, *, may_be_empty: bool = False) -> str:
    """A field that must be text; raises DataError naming it otherwise."""
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f'{source}: "{key}" must be text, not {_kind(value)}')
    if not value and not may_be_empty:
        raise DataError(f'{source}: "{key}" is empty')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{source}: "{key}" holds half of a surrogate pair at character {error.start + 1}'
        ) from error
    return value


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "missing or null",
    }
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number")
