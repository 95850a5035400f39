"""Continuous batching over one target: submit, step, stream, cancel.

Requests wait for a KV slot, their prompts go in by chunks beside the others' decoding, and each is sampled
by its own parameters and random streams, so its tokens do not depend on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace

import torch

from deepspec.engine.curve import curve_table
from deepspec.engine.loop import Loop, StepOutcome
from deepspec.engine.plain import plain_parts
from deepspec.engine.queue import RequestQueue, StepPlan
from deepspec.engine.request import Completion, Request, TokenEvent
from deepspec.errors import ConfigError
from deepspec.interfaces import OnlineCalibrator
from deepspec.resources import memory
from deepspec.sampling import SamplingParams, request_seed
from deepspec.strategy import Parts
from deepspec.target import DecodingTarget
from deepspec.types import RequestRound, RoundRecord, TracedStep

DEFAULT_MAX_POSITIONS = 2048


class Engine:
    """Decodes requests in batch with a strategy's parts, or plainly without.

    Args:
        target: the frozen target.
        parts: an assembled strategy; None decodes plainly.
        max_batch: KV slots, that is how many requests run at once.
        max_positions: longest prompt plus output; the target's own limit, at most 2,048, when None.
        prefill_chunk: prompt tokens that a step takes in at most.
        seed: gives every request without a seed its own.
        observers: called with each step's record.
        tracer: called with each step that verified something; a traced step also works out the chances.
    """

    def __init__(
        self,
        target: DecodingTarget,
        parts: Parts | None = None,
        *,
        max_batch: int = 32,
        max_positions: int | None = None,
        prefill_chunk: int = 512,
        seed: int = 0,
        observers: Sequence[Callable[[RoundRecord], None]] = (),
        tracer: Callable[[TracedStep], None] | None = None,
    ) -> None:
        limit = target.info.max_positions
        self.max_positions = min(limit, DEFAULT_MAX_POSITIONS) if max_positions is None else max_positions
        if not 2 <= self.max_positions <= limit:
            raise ConfigError(f"max_positions is {max_positions}; allowed are 2..{limit}, the target's limit")
        for name, value in (("max_batch", max_batch), ("prefill_chunk", prefill_chunk)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; allowed is an integer >= 1")
        self.target = target
        given = plain_parts(target.info) if parts is None else parts
        # Weights are shared with ``parts``; what ``allocate`` and ``begin`` make is this engine's own.
        self.parts = replace(given, drafter=copy(given.drafter), calibrator=copy(given.calibrator))
        room = self.max_positions + self.parts.drafter.context.draft_length + 1
        most_tokens = max_batch * (1 + self.parts.drafter.context.draft_length) + prefill_chunk
        curve = curve_table(self.parts.policy, most_tokens, target.device)
        slots = target.new_slots(max_batch, room)
        self._loop = Loop(target, self.parts, slots, curve, traced=tracer is not None)
        self.parts.modules().eval()
        draft_device = self.parts.drafter.context.target.embedding.device
        with memory(lambda: _needs_memory(max_batch, room)):
            self.parts.drafter.allocate(max_batch, room, target.dtype, draft_device)
        if isinstance(self.parts.calibrator, OnlineCalibrator):
            self.parts.calibrator.begin(draft_device)
        self._queue = RequestQueue(max_batch, prefill_chunk)
        self._seed, self._count = seed, 0
        self._observers, self._tracer = tuple(observers), tracer
        self._cancelled: list[TokenEvent] = []
        self.completions: dict[int, Completion] = {}

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running, or an event has not been delivered."""
        return bool(self._queue) or bool(self._cancelled)

    def submit(
        self, prompt: Sequence[int], params: SamplingParams | None = None, *, traffic_class: int = 0
    ) -> int:
        """Queue a prompt; returns the request's number.

        ``traffic_class`` says what it is like; an online calibrator learns each class by itself.

        Raises:
            ConfigError: an empty or too long prompt, a token id that the target does not have, or a class
                that the calibrator does not know.
        """
        params = params or SamplingParams()
        self._check(prompt, params)
        self._check_class(traffic_class)
        number = self._count
        self._count += 1
        own_stops = () if params.ignore_stop else self.target.stop_token_ids
        request = Request(
            request_id=number,
            params=params,
            seed=request_seed(self._seed, number) if params.seed is None else params.seed,
            stop_ids=frozenset((*own_stops, *params.stop_token_ids)),
            prompt_length=len(prompt),
            tokens=list(prompt),
            traffic_class=traffic_class,
        )
        self._queue.add(request)
        return number

    def cancel(self, request_id: int) -> None:
        """End a request now; its completion keeps what was generated. Finished numbers are ignored."""
        request = self._queue.find(request_id)
        if request is not None:
            request.finish_reason = "cancelled"
            self._finish(request)
            self._cancelled.append(TokenEvent(request_id, (), None, "cancelled"))

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """One target forward for everyone; what each request gained."""
        events, self._cancelled = self._cancelled, []
        plan = self._queue.plan()
        if not plan.decoding and not plan.chunks:
            return events
        started = time.perf_counter()
        outcome = self._loop.run(plan)
        positions = tuple(len(request.tokens) - 1 for request in plan.decoding)
        rounds = self._commit(plan, outcome, events)
        extending = time.perf_counter()
        self._extend(plan, outcome)
        ended = time.perf_counter()
        for request in outcome.requests:
            if request.finish_reason is not None:
                self._finish(request)
        extend_ms, total_ms = 1e3 * (ended - extending), 1e3 * (ended - started)
        self._observe(plan, outcome, rounds, positions, extend_ms, total_ms)
        return events

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Generate for all prompts; completions in their order."""
        numbers = self._submit_all(prompts, params)
        while self.has_work:
            self.step()
        return [self.completions.pop(number) for number in numbers]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[TokenEvent]:
        """Generate for all prompts, yielding events as they come."""
        numbers = self._submit_all(prompts, params)
        try:
            while self.has_work:
                yield from self.step()
        finally:
            for number in numbers:
                self.cancel(number)
                self.completions.pop(number, None)
            self._cancelled = [e for e in self._cancelled if e.request_id not in numbers]

    def _submit_all(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[int]:
        if params is None or isinstance(params, SamplingParams):
            each: list[SamplingParams | None] = [params] * len(prompts)
        else:
            each = list(params)
        if len(each) != len(prompts):
            raise ConfigError(
                f"{len(each)} sampling parameters for {len(prompts)} prompts; give one or as many"
            )
        for prompt, one in zip(prompts, each, strict=True):
            self._check(prompt, one or SamplingParams())
        return [self.submit(prompt, one) for prompt, one in zip(prompts, each, strict=True)]

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        vocab_size = self.target.info.vocab_size
        if not prompt:
            raise ConfigError("the prompt is empty; give at least one token")
        if len(prompt) + params.max_tokens > self.max_positions:
            raise ConfigError(
                f"prompt of {len(prompt)} tokens plus max_tokens {params.max_tokens} is over max_positions "
                f"{self.max_positions}; shorten one of them or raise it "
                f"(the target's limit is {self.target.info.max_positions})"
            )
        wrong = next((t for t in prompt if not 0 <= t < vocab_size), None)
        if wrong is not None:
            raise ConfigError(
                f"prompt token {wrong} is not in the target's vocabulary; allowed are 0..{vocab_size - 1}"
            )

    def _check_class(self, given: int) -> None:
        calibrator = self.parts.calibrator
        known = calibrator.num_classes if isinstance(calibrator, OnlineCalibrator) else None
        if given < 0 or (known is not None and given >= known):
            allowed = "an integer >= 0" if known is None else f"0..{known - 1} (calibrator.num_classes)"
            raise ConfigError(f"traffic class {given}; allowed is {allowed}")

    def _commit(self, plan: StepPlan, outcome: StepOutcome, events: list[TokenEvent]) -> list[RequestRound]:
        """Append what was gained to each request, note events and rounds."""
        rounds = []
        for chunk in plan.chunks:
            chunk.request.computed += chunk.count
        for i, request in enumerate(outcome.requests):
            accepted, drafts = outcome.accepted[i], outcome.drafts[i]
            taken = request.take([*drafts[:accepted], outcome.bonus[i]])
            record = None
            if i < len(plan.decoding):
                request.computed += 1 + accepted
                record = RequestRound(
                    request_id=request.request_id,
                    drafted=outcome.drafted[i],
                    verified=outcome.verified[i],
                    accepted=accepted,
                    emitted=len(taken),
                    stopped=request.finish_reason == "stop",
                    tokens=tuple(taken),
                    rejected=drafts[accepted] if accepted < outcome.verified[i] else None,
                )
                rounds.append(record)
            events.append(TokenEvent(request.request_id, tuple(taken), record, request.finish_reason))
        return rounds

    def _extend(self, plan: StepPlan, outcome: StepOutcome) -> None:
        """Pass committed rows of requests that go on to the drafter, if there is one."""
        if self.parts.drafter.context.draft_length == 0:
            return
        requests = [*plan.decoding, *(chunk.request for chunk in plan.chunks)]
        kept = [1 + accepted for accepted in outcome.accepted[: len(plan.decoding)]]
        kept += [chunk.count for chunk in plan.chunks]
        alive = [0 if r.finish_reason is not None else n for r, n in zip(requests, kept, strict=True)]
        self._loop.extend(outcome, requests, alive)

    def _finish(self, request: Request) -> None:
        self._queue.remove(request)
        if request.slot >= 0:
            self.parts.drafter.release(request.slot)
        self.completions[request.request_id] = request.completion()

    def _observe(
        self,
        plan: StepPlan,
        outcome: StepOutcome,
        rounds: list[RequestRound],
        positions: tuple[int, ...],
        extend_ms: float,
        total_ms: float,
    ) -> None:
        if not self._observers and self._tracer is None:
            return
        draft_ms = outcome.draft_ms + extend_ms
        record = RoundRecord(
            requests=tuple(rounds),
            verify_tokens=sum(span.length for span in outcome.spans),
            prefill_tokens=sum(chunk.count for chunk in plan.chunks),
            draft_ms=draft_ms,
            verify_ms=outcome.verify_ms,
            other_ms=total_ms - draft_ms - outcome.verify_ms,
            kv_tokens=self._queue.kv_tokens,
        )
        for observer in self._observers:
            observer(record)
        if self._tracer is not None and outcome.signals.size:
            confidence, chances = outcome.signals[:, 0], outcome.signals[:, 1]
            classes = tuple(request.traffic_class for request in plan.decoding)
            self._tracer(TracedStep(record, positions, classes, confidence, chances))


def _needs_memory(num_slots: int, max_positions: int) -> str:
    return (
        f"memory ran out for the drafter's state of {num_slots} requests of {max_positions} positions; "
        "lower max_batch or max_positions"
    )
