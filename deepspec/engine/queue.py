"""Which requests take part in a step: a waiting queue, KV slots, and a budget of prompt tokens a step."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from deepspec.engine.request import Request


@dataclass(frozen=True)
class PromptChunk:
    """Prompt tokens ``start .. start + count - 1`` of a request."""

    request: Request
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the next token is sampled after this chunk."""
        return self.start + self.count == self.request.prompt_length


@dataclass(frozen=True)
class StepPlan:
    """One step: requests that decode, ordered by slot, and prompt chunks."""

    decoding: tuple[Request, ...]
    chunks: tuple[PromptChunk, ...]


class RequestQueue:
    """First come, first served; the lowest free slot is taken, so that live slots stay close together."""

    def __init__(self, num_slots: int, prefill_chunk: int) -> None:
        self._prefill_chunk = prefill_chunk
        self._free = list(range(num_slots))
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def kv_tokens(self) -> int:
        """Positions that running requests hold in their KV slots."""
        return sum(request.computed for request in self._running.values())

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self._waiting.append(request)

    def find(self, request_id: int) -> Request | None:
        """A live request by its number."""
        every = (*self._waiting, *self._running.values())
        return next((r for r in every if r.request_id == request_id), None)

    def remove(self, request: Request) -> None:
        """Forget a finished or cancelled request and free its slot."""
        if request.slot < 0:
            self._waiting.remove(request)
        else:
            del self._running[request.slot]
            heapq.heappush(self._free, request.slot)

    def plan(self) -> StepPlan:
        """Admit what fits and divide the prompt budget in order of arrival."""
        budget = self._prefill_chunk
        chunks: list[PromptChunk] = []
        unread = [r for r in self._running.values() if r.computed < r.prompt_length]
        for request in sorted(unread, key=lambda r: r.request_id):
            budget -= self._chunk(request, budget, chunks)
        while self._waiting and self._free and budget > 0:
            request = self._waiting.popleft()
            request.slot = heapq.heappop(self._free)
            self._running[request.slot] = request
            budget -= self._chunk(request, budget, chunks)
        decoding = (r for r in self._running.values() if r.is_decoding)
        return StepPlan(tuple(sorted(decoding, key=lambda r: r.slot)), tuple(chunks))

    def _chunk(self, request: Request, budget: int, chunks: list[PromptChunk]) -> int:
        count = min(budget, request.prompt_length - request.computed)
        if count > 0:
            chunks.append(PromptChunk(request, request.computed, count))
        return count
