"""A request from submission to its last token, host side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deepspec.sampling import SamplingParams
from deepspec.types import RequestRound

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Completion:
    """A finished request: its prompt, what was generated, and why it ended."""

    request_id: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class TokenEvent:
    """What one step gave one request.

    Attributes:
        request_id: the engine's number.
        tokens: new output tokens, a stop token included; empty for a cancellation.
        round: the verified round, or None for the first token after the prompt.
        finish_reason: set on a request's last event.
    """

    request_id: int
    tokens: tuple[int, ...]
    round: RequestRound | None
    finish_reason: FinishReason | None


@dataclass
class Request:
    """Live state of a request.

    Attributes:
        tokens: prompt and output so far; once the prompt is in, the last one is the anchor.
        computed: how many of them the target's KV slot holds.
        slot: its KV slot while it runs.
        traffic_class: what an online calibrator keeps apart.
    """

    request_id: int
    params: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    prompt_length: int
    tokens: list[int]
    computed: int = 0
    slot: int = -1
    traffic_class: int = 0
    finish_reason: FinishReason | None = field(default=None)

    @property
    def is_decoding(self) -> bool:
        """Whether the whole prompt is in and the last token waits to be the anchor."""
        return self.computed == len(self.tokens) - 1 and len(self.tokens) > self.prompt_length

    def take(self, new: list[int]) -> list[int]:
        """Append what fits: up to and including a stop token, at most the maximum; sets ``finish_reason``."""
        room = self.params.max_tokens - (len(self.tokens) - self.prompt_length)
        taken = new[:room]
        stop = next((i for i, token in enumerate(taken) if token in self.stop_ids), None)
        if stop is not None:
            taken = taken[: stop + 1]
            self.finish_reason = "stop"
        elif len(taken) == room:
            self.finish_reason = "length"
        self.tokens += taken
        return taken

    def completion(self) -> Completion:
        """The finished request."""
        if self.finish_reason is None:
            raise AssertionError(f"request {self.request_id} is not finished")
        prompt, output = self.tokens[: self.prompt_length], self.tokens[self.prompt_length :]
        return Completion(self.request_id, tuple(prompt), tuple(output), self.finish_reason)
