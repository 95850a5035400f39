"""One sample on its way: what is to be answered next, and what it is when all is answered.

The assistant's turns are written in order, each given those written before it. A conversation ends early
with a turn that was cut off, or that calls a tool: what the source says next does not follow from these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepspec.data.examples import ChatExample, Message, ResponseExample, as_record
from deepspec.data.prompts import ChatPrompt
from deepspec.regenerate.samples import LeftOut, LeftOutKind, Outcome, Reply, Sample, Written
from deepspec.sampling import SamplingParams, request_seed

#: What stands in a decoded text for bytes that are no character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Conversation:
    """A sample with the turns written so far; ``params.seed`` and its number decide every turn's seed."""

    def __init__(self, sample: Sample, params: SamplingParams) -> None:
        self.sample = sample
        self.messages: list[Message] = []
        self._replies: list[Reply] = []
        self._places: list[int] = []
        self._seed = request_seed(params.seed or 0, sample.number)
        prompt = sample.prompt
        self._chat = prompt if isinstance(prompt, ChatPrompt) else None
        self._turns = [0] if self._chat is None else list(self._chat.turns)
        self._read_on()

    @property
    def seed(self) -> int:
        """64 bits, of the turn to write."""
        return request_seed(self._seed, len(self._replies))

    @property
    def has_replies(self) -> bool:
        """Whether a turn has been written."""
        return bool(self._replies)

    def take(self, reply: Reply) -> Outcome | None:
        """Add the turn that was asked for; None when there is another to write."""
        if reply.finish_reason == "length":  # half a character at the end is left out
            reply = replace(reply, text=reply.text.rstrip(_REPLACEMENT))
        if problem := _problem(reply):
            return LeftOut(self.sample, *problem)
        self._replies.append(reply)
        self._places.append(len(self.messages))
        self.messages.append(Message("assistant", reply.text, reply.extra))
        if reply.finish_reason != "stop" or len(self._replies) == len(self._turns):
            return self.ended()
        self._read_on()
        return None

    def ended(self) -> Written:
        """What has been written, as training text; there must be a turn."""
        last, source = self._replies[-1], self.sample.prompt.source
        is_complete = last.finish_reason != "length"
        if self._chat is None:
            assert not isinstance(self.sample.prompt, ChatPrompt)
            row = as_record(ResponseExample(source, self.sample.prompt.text, last.text, is_complete))
        else:
            messages = tuple(self.messages[: self._places[-1] + 1])
            row = as_record(ChatExample(source, messages, self._chat.tools, is_complete))
        return Written(
            sample=self.sample,
            row=row,
            turns=tuple(
                _described(place, reply) for place, reply in zip(self._places, self._replies, strict=True)
            ),
            finish_reason=last.finish_reason,
            num_tokens=_total([reply.num_tokens for reply in self._replies]),
        )

    def _read_on(self) -> None:
        """Copy what the source says before the next turn."""
        if self._chat is not None:
            self.messages += self._chat.messages[len(self.messages) : self._turns[len(self._replies)]]


def _described(place: int, reply: Reply) -> dict[str, Any]:
    """How a turn was made; ``message`` is its place, from 0."""
    made: dict[str, Any] = {"message": place, "seed": reply.seed, "finish_reason": reply.finish_reason}
    made["num_tokens"] = reply.num_tokens
    return made if reply.tokens is None else {**made, "tokens": list(reply.tokens)}


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _problem(reply: Reply) -> tuple[LeftOutKind, str] | None:
    """Why a reply is no text to train on."""
    if not reply.text and not reply.extra.get("tool_calls"):
        return "empty", "the target wrote nothing" if not reply.extra else "the target wrote reasoning alone"
    if _REPLACEMENT in reply.text:
        return "unusable", "the target wrote bytes that are no text"
    return None
