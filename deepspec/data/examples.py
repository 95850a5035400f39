"""Examples, and the objects they are read from: ``{"text"}``, ``{"prompt", "response"}`` or ``{"messages"}``.

Each may have ``"complete": false``: the text, or the last reply, was cut off, so nothing says that it ends
there; and ``"provenance"``, an object that says how the text was made and is not read. Messages may have
``"tools"`` beside them, and hold what templates know of tools and reasoning. Whatever cannot be used raises
:class:`~deepspec.errors.DataError` with its source; nothing is skipped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepspec.errors import DataError

FORMS = '{"text"}, {"prompt", "response"} or {"messages"}'
_COMPLETE = "complete"
_TOOLS = "tools"
PROVENANCE = "provenance"
_CALLS = "tool_calls"
#: What a message may have beside its role and content, and templates read.
_MESSAGE_TEXTS = frozenset({"name", "reasoning_content", "tool_call_id"})
_MESSAGE_KEYS = frozenset({"role", "content", _CALLS, *_MESSAGE_TEXTS})


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
    """One turn of a conversation.

    ``extra`` holds what it has beside role and content: ``tool_calls`` (a list of objects), and the texts
    ``tool_call_id``, ``name`` and ``reasoning_content``.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_reply(self) -> bool:
        """Whether the assistant says or calls something here, which is supervised."""
        return self.role == "assistant" and bool(self.content or self.extra.get(_CALLS))

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates take."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True)
class ChatExample:
    """A conversation for the tokenizer's chat template; the assistant's turns are supervised.

    ``tools`` are the descriptions of tools that the template shows the assistant. A conversation that is not
    complete ends in a reply that was cut off.
    """

    source: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    is_complete: bool = True


Example = TextExample | ResponseExample | ChatExample


def parse_example(record: dict[str, object], source: str) -> Example:
    """One example of exactly one of the three forms; raises DataError for anything else."""
    keys = set(record) - {PROVENANCE}
    if keys - {_COMPLETE} == {"text"}:
        return TextExample(source, text_field(record, "text", source), _is_complete(record, source))
    if keys - {_COMPLETE} == {"prompt", "response"}:
        prompt = text_field(record, "prompt", source, may_be_empty=True)
        response = text_field(record, "response", source)
        return ResponseExample(source, prompt, response, _is_complete(record, source))
    if keys - {_COMPLETE, _TOOLS} == {"messages"}:
        messages, tools = parse_conversation(record, source)
        if not any(message.is_reply for message in messages):
            raise DataError(
                f'{source}: no message has the role "assistant" and some content, so nothing is supervised'
            )
        is_complete = _is_complete(record, source)
        if not is_complete and not (messages[-1].is_reply and messages[-1].content):
            raise DataError(f'{source}: "{_COMPLETE}" is false, and the last message is no reply in words')
        return ChatExample(source, messages, tools, is_complete)
    given = ", ".join(f'"{key}"' for key in sorted(keys)) or "none"
    raise DataError(
        f'{source}: the keys must be exactly {FORMS}, with an optional "{_COMPLETE}" and "{PROVENANCE}", '
        f'the last with an optional "{_TOOLS}"; given: {given}'
    )


def _is_complete(record: dict[str, object], source: str) -> bool:
    value = record.get(_COMPLETE, True)
    if not isinstance(value, bool):
        raise DataError(f'{source}: "{_COMPLETE}" must be true or false, not {kind_of(value)}')
    return value


def as_record(example: Example) -> dict[str, Any]:
    """The object that :func:`parse_example` reads as this example."""
    cut = {} if example.is_complete else {_COMPLETE: False}
    if isinstance(example, ChatExample):
        messages = [message.as_dict() for message in example.messages]
        return {"messages": messages, **({_TOOLS: list(example.tools)} if example.tools else {}), **cut}
    if isinstance(example, TextExample):
        return {"text": example.text, **cut}
    return {"prompt": example.prompt, "response": example.response, **cut}


def parse_conversation(
    record: Mapping[str, object], source: str
) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """Messages and tools of a conversation, with or without replies; raises DataError."""
    return parse_messages(record["messages"], source), _objects(record, _TOOLS, source)


def parse_messages(value: object, source: str) -> tuple[Message, ...]:
    """A conversation; raises DataError unless it is a list of messages, each with a role and content."""
    if not isinstance(value, list) or not value:
        raise DataError(f'{source}: "messages" must be a list of messages, not {kind_of(value)}')
    return tuple(
        _parse_message(item, f"{source}: message {number}") for number, item in enumerate(value, start=1)
    )


def _parse_message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise DataError(f'{where} must be {{"role", "content"}}, not {kind_of(item)}')
    calls = _objects(item, _CALLS, where)
    values = {**item, "content": ""} if calls and item.get("content") is None else item
    if not {"role", "content"} <= set(values) <= _MESSAGE_KEYS:
        given = ", ".join(f'"{key}"' for key in sorted(item)) or "none"
        others = ", ".join(f'"{key}"' for key in sorted(_MESSAGE_KEYS - {"role", "content"}))
        raise DataError(f'{where} must have "role" and "content", and may have {others}; given: {given}')
    extra: dict[str, Any] = {
        key: text_field(values, key, where, may_be_empty=True) for key in values if key in _MESSAGE_TEXTS
    }
    if calls:
        extra[_CALLS] = list(calls)
    content = text_field(values, "content", where, may_be_empty=True)
    return Message(text_field(values, "role", where), content, extra)


def _objects(record: Mapping[str, object], key: str, source: str) -> tuple[dict[str, Any], ...]:
    value = record.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f'{source}: "{key}" must be a list of objects')
    return tuple(value)


def text_field(record: Mapping[str, object], key: str, source: str, *, may_be_empty: bool = False) -> str:
    """A field that must be text; raises DataError naming it otherwise."""
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f'{source}: "{key}" must be text, not {kind_of(value)}')
    if not value and not may_be_empty:
        raise DataError(f'{source}: "{key}" is empty')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{source}: "{key}" holds half of a surrogate pair at character {error.start + 1}'
        ) from error
    return value


def kind_of(value: object) -> str:
    """What a JSON value is, in words for errors."""
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
