"""What a row asks: a conversation of which the assistant's turns are to be written, or text to continue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepspec.data.examples import Message
from deepspec.errors import DataError


@dataclass(frozen=True)
class TextPrompt:
    """Text to continue. ``source`` is ``file:line``."""

    source: str
    text: str


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation; raises DataError when nothing in it is to be answered.

    Of its assistant's messages only those are of use that stay: what comes before anybody has asked, and
    calls of tools that the conversation answers.
    """

    source: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.turns:
            raise DataError(f'{self.source}: no message has the role "user", so there is nothing to answer')

    @property
    def turns(self) -> tuple[int, ...]:
        """Places, from 0, of the messages to write; one past the last where nobody has answered yet."""
        asked = next((place for place, one in enumerate(self.messages) if one.role == "user"), None)
        if asked is None:
            return ()
        places = range(asked + 1, len(self.messages))
        found = [place for place in places if self.messages[place].role == "assistant"]
        found = [place for place in found if not self._is_answered_call(place)]
        ends_open = self.messages[-1].role != "assistant"
        return (*found, len(self.messages)) if ends_open else tuple(found)

    def _is_answered_call(self, place: int) -> bool:
        following = self.messages[place + 1 : place + 2]
        return bool(self.messages[place].extra.get("tool_calls")) and any(m.role == "tool" for m in following)


Prompt = TextPrompt | ChatPrompt


def beginning(text: str, most_characters: int) -> str:
    """At most ``most_characters`` and half of ``text``, up to a blank where there is one; never empty."""
    limit = max(1, min(most_characters, len(text) // 2))
    part = text[:limit]
    words = part.rstrip() if text[limit : limit + 1].isspace() else part[: _last_blank(part)].rstrip()
    return words or part


def _last_blank(text: str) -> int:
    return max((place for place, character in enumerate(text) if character.isspace()), default=len(text))
