"""Speed of one request at a time: with drafting, plainly in the same engine, and by transformers' generate.

The contenders take turns on the same prompts, in an order that rotates, so that a machine whose speed
drifts favours none; each prompt gives one pair. All write exactly ``max_tokens`` tokens (stop tokens are
ignored here), and a time is that of the whole request, prompt included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepspec.engine import Engine, SamplingParams
from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.target.packed import ATTENTION_NAME
from deepspec.types import RoundRecord

WARM_UP_TOKENS = 8
Contender = Callable[[Sequence[int], SamplingParams], float]


@dataclass(frozen=True)
class Speed:
    """Medians over prompts (tokens per second, the ratio of paired times) and over rounds (milliseconds).

    ``seconds`` holds each contender's time for each prompt, in the prompts' order, for paired comparisons.
    """

    tokens_per_s: float
    tokens_per_s_plain: float
    tokens_per_s_transformers: float | None
    speedup: float
    draft_ms: float
    verify_ms: float
    target_ms: float
    seconds: dict[str, tuple[float, ...]]


def measure_speed(
    target: Target,
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    against_transformers: bool = False,
) -> Speed:
    """Time ``prompts`` one by one with ``parts``, without, and optionally with transformers."""
    params = replace(params, ignore_stop=True)
    longest = max(len(prompt) for prompt in prompts) + params.max_tokens
    speculative, plain = _RoundTimes(), _RoundTimes()
    contenders: dict[str, Contender] = {
        "speculative": _engine(target, parts, longest, speculative),
        "plain": _engine(target, None, longest, plain),
    }
    if against_transformers:
        contenders["transformers"] = _transformers(target)
    for contender in contenders.values():
        contender(prompts[0], replace(params, max_tokens=min(WARM_UP_TOKENS, params.max_tokens)))
    speculative.clear()
    plain.clear()
    times = _take_turns(contenders, prompts, params)
    medians = {name: statistics.median(params.max_tokens / t for t in found) for name, found in times.items()}
    pairs = zip(times["plain"], times["speculative"], strict=True)
    return Speed(
        tokens_per_s=medians["speculative"],
        tokens_per_s_plain=medians["plain"],
        tokens_per_s_transformers=medians.get("transformers"),
        speedup=statistics.median(slow / fast for slow, fast in pairs),
        draft_ms=statistics.median(speculative.draft_ms or [0.0]),
        verify_ms=statistics.median(speculative.verify_ms or [0.0]),
        target_ms=statistics.median(plain.verify_ms or [0.0]),
        seconds={name: tuple(found) for name, found in times.items()},
    )


def _take_turns(
    contenders: dict[str, Contender], prompts: Sequence[Sequence[int]], params: SamplingParams
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number, prompt in enumerate(prompts):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            times[name].append(contenders[name](prompt, replace(params, seed=number)))
    return times


class _RoundTimes:
    """Observes the times of rounds that took in no prompt."""

    def __init__(self) -> None:
        self.draft_ms: list[float] = []
        self.verify_ms: list[float] = []

    def __call__(self, record: RoundRecord) -> None:
        if record.requests and record.prefill_tokens == 0:
            self.draft_ms.append(record.draft_ms)
            self.verify_ms.append(record.verify_ms)

    def clear(self) -> None:
        self.draft_ms.clear()
        self.verify_ms.clear()


def _engine(target: Target, parts: Parts | None, max_positions: int, times: _RoundTimes) -> Contender:
    engine = Engine(target, parts, max_batch=1, max_positions=max_positions, observers=[times])

    def run(prompt: Sequence[int], params: SamplingParams) -> float:
        started = time.perf_counter()
        engine.run([prompt], params)
        return time.perf_counter() - started

    return run


def _transformers(target: Target) -> Contender:
    def run(prompt: Sequence[int], params: SamplingParams) -> float:
        tokens = torch.tensor([list(prompt)], device=target.device)
        with _own_attention(target), torch.random.fork_rng(devices=[]):
            started = time.perf_counter()
            target.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), **_generation_options(params)
            ).tolist()
            return time.perf_counter() - started

    return run


def _generation_options(params: SamplingParams) -> dict[str, Any]:
    length = {"max_new_tokens": params.max_tokens, "min_new_tokens": params.max_tokens, "pad_token_id": 0}
    if params.temperature == 0:
        return {**length, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {
        **length,
        "do_sample": True,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p or None,
    }


@contextmanager
def _own_attention(target: Target) -> Iterator[None]:
    # Targets run on packed rows, which ``generate`` knows nothing of.
    target.model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        target.model.set_attn_implementation(ATTENTION_NAME)
