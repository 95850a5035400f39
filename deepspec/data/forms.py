"""Rows of other people's data as examples: the usual columns are found, the others are said to be ignored.

Looked for in this order: ``messages``, ``conversations``, ``turns``, ``prompt`` with ``response``, ``text``.
A message is ``{"role", "content"}`` or ``{"from", "value"}``; turns may be plain texts, the user's first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepspec.data.examples import (
    ChatExample,
    Example,
    Message,
    ResponseExample,
    parse_conversation,
    parse_example,
    text_field,
)
from deepspec.data.prompts import ChatPrompt, Prompt, TextPrompt, beginning
from deepspec.errors import DataError

FORMS = "messages, conversations, turns, prompt with response, or text"
_COLUMNS = (("messages",), ("conversations",), ("turns",), ("prompt", "response"), ("text",))
_PROMPT_FORMS = "messages, conversations, turns, prompt, or text"
_PROMPT_COLUMNS = (("messages",), ("conversations",), ("turns",), ("prompt",), ("text",))
_CHATS = ("messages", "conversations", "turns")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Columns:
    """Which columns are read.

    Attributes:
        renamed: given name to the name that is looked for.
        as_chat: whether a prompt is put as a user's message, and its response as the assistant's.
    """

    renamed: Mapping[str, str]
    as_chat: bool = False

    def example(self, row: Mapping[str, Any], source: str) -> tuple[Example, list[str]]:
        """The example of a row, and the columns that were not used; raises DataError when it has none."""
        values = self._renamed(row)
        form = _form(values, source, _COLUMNS, FORMS)
        optional = ("tools", "complete") if form[0] in _CHATS else ("complete",)
        used = {name: values[name] for name in (*form, *optional) if name in values}
        ignored = sorted(key for key in values if key not in used)
        example = parse_example(_normal(used, form[0], source), source)
        if self.as_chat and isinstance(example, ResponseExample):
            example = _as_chat(example)
        return example, ignored

    def prompt(self, row: Mapping[str, Any], source: str, *, text_characters: int) -> Prompt:
        """What a row asks, whether it has an answer or not; raises DataError when it asks nothing.

        Of running text that is its beginning, of at most ``text_characters``.
        """
        values = self._renamed(row)
        [form] = _form(values, source, _PROMPT_COLUMNS, _PROMPT_FORMS)
        if form in _CHATS:
            used = {name: values[name] for name in (form, "tools") if name in values}
            return ChatPrompt(source, *parse_conversation(_normal(used, form, source), source))
        text = text_field(values, form, source)
        if form == "text":
            return TextPrompt(source, beginning(text, text_characters))
        return ChatPrompt(source, (Message("user", text),)) if self.as_chat else TextPrompt(source, text)

    def _renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = {key: value for key, value in row.items() if key not in self.renamed}
        return values | {new: row[old] for old, new in self.renamed.items() if old in row}


def _form(
    values: Mapping[str, Any], source: str, forms: tuple[tuple[str, ...], ...], known: str
) -> tuple[str, ...]:
    """The first of ``forms`` whose columns are all there."""
    form = next((names for names in forms if set(names) <= values.keys()), None)
    if form is None:
        given = ", ".join(sorted(values)) or "none"
        raise DataError(f"{source}: a row needs {known}; given: {given}; --rename OLD=NEW names a column")
    return form


def parse_renames(renames: list[str]) -> dict[str, str]:
    """``["old=new"]`` as a mapping; raises DataError for anything else and for a name that is not read."""
    known = sorted({name for names in _COLUMNS for name in names} | {"tools", "complete"})
    found = {}
    for item in renames:
        old, separator, new = item.partition("=")
        if not (separator and old and new in known):
            raise DataError(f"--rename {item!r}: write OLD=NEW, where NEW is one of {', '.join(known)}")
        found[old] = new
    return found


def _as_chat(example: ResponseExample) -> Example:
    messages = [{"role": "user", "content": example.prompt}]
    messages += [{"role": "assistant", "content": example.response}]
    return parse_example({"messages": messages, "complete": example.is_complete}, example.source)


def _normal(used: dict[str, Any], form: str, source: str) -> dict[str, Any]:
    """The row of a form that :func:`parse_example` reads."""
    if form not in _CHATS:
        return used
    items = used.pop(form)
    if form == "turns" and isinstance(items, list) and all(isinstance(item, str) for item in items):
        roles = ("user", "assistant")
        items = [{"role": roles[number % 2], "content": item} for number, item in enumerate(items)]
    elif isinstance(items, list):
        items = [_message(item, f"{source}: message {number}") for number, item in enumerate(items, start=1)]
    tools = _parsed(used.pop("tools", None), source)
    return {**used, "messages": items, **({"tools": tools} if tools else {})}


def _message(item: Any, where: str) -> Any:
    if not isinstance(item, dict) or not {"from", "value"} <= item.keys():
        return item
    role = item["from"]
    if role not in _ROLES:
        raise DataError(f'{where}: "from" is {role!r}; known are {", ".join(sorted(_ROLES))}')
    return {"role": _ROLES[role], "content": item["value"]}


def _parsed(tools: Any, source: str) -> Any:
    """Descriptions of tools, which tables often hold as JSON text."""
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools) if tools.strip() else None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f'{source}: "tools" is text, and not JSON: {error}') from error


def prompt_of(example: Example) -> str:
    """What the example asks, by which two are the same: up to the first reply, else all of its text."""
    if isinstance(example, ResponseExample):
        return example.prompt or example.response
    if not isinstance(example, ChatExample):
        return example.text
    first = next(index for index, message in enumerate(example.messages) if message.is_reply)
    asked = example.messages[:first] or example.messages[:1]
    return "\n".join(f"{message.role}: {message.content}" for message in asked)
