"""Speed of drafters against plain decoding in the same engine, and against transformers' generate.

The contenders take turns on the same blocks of prompts (of one prompt each unless told otherwise), in an
order that rotates, so that a machine whose speed drifts favours none; each block gives one pair. All write
exactly ``max_tokens`` tokens a prompt (stop tokens are ignored here), and a time is that of whole requests,
prompts included.
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
Block = Sequence[Sequence[int]]
Contender = Callable[[Block, Sequence[SamplingParams]], float]


@dataclass(frozen=True)
class Speed:
    """Medians over blocks (tokens per second, the ratio of paired times) and over rounds (milliseconds).

    ``seconds`` holds each contender's time for each block, in the prompts' order, for paired comparisons.
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
    drafted: Sequence[Parts],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    batch: int = 1,
    against_transformers: bool = False,
) -> list[Speed]:
    """Time ``prompts`` in blocks of ``batch`` with each of ``drafted``, and plainly, by turns.

    With ``against_transformers`` also by transformers, which takes a block's prompts one by one.

    Returns:
        One :class:`Speed` for each of ``drafted``; all share the plain times.
    """
    params = replace(params, ignore_stop=True)
    blocks = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    room = {"max_batch": batch, "max_positions": max(map(len, prompts)) + params.max_tokens}
    engines: dict[str, Parts | None] = {"plain": None, **{str(n): parts for n, parts in enumerate(drafted)}}
    rounds = {name: _RoundTimes() for name in engines}
    contenders = {name: _engine(target, parts, rounds[name], **room) for name, parts in engines.items()}
    if against_transformers:
        contenders["transformers"] = _transformers(target)
    for contender in contenders.values():
        contender(prompts[:1], [replace(params, max_tokens=min(WARM_UP_TOKENS, params.max_tokens))])
    for times in rounds.values():
        times.clear()
    seconds = _take_turns(contenders, blocks, params)
    shared: dict[str, list[float]] = {n: seconds[n] for n in ("plain", "transformers") if n in seconds}
    tokens = [len(block) * params.max_tokens for block in blocks]
    names = [str(number) for number in range(len(drafted))]
    return [
        _speed({"speculative": seconds[name], **shared}, rounds[name], rounds["plain"], tokens)
        for name in names
    ]


def _take_turns(
    contenders: dict[str, Contender], blocks: Sequence[Block], params: SamplingParams
) -> dict[str, list[float]]:
    """Each contender's seconds for each block; every prompt has the same seed with all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names, seed = list(contenders), 0
    for number, block in enumerate(blocks):
        each = [replace(params, seed=seed + place) for place in range(len(block))]
        seed += len(block)
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            seconds[name].append(contenders[name](block, each))
    return seconds


def _speed(
    seconds: dict[str, list[float]], speculative: _RoundTimes, plain: _RoundTimes, tokens: Sequence[int]
) -> Speed:
    medians = {
        name: statistics.median(count / t for count, t in zip(tokens, found, strict=True))
        for name, found in seconds.items()
    }
    pairs = zip(seconds["plain"], seconds["speculative"], strict=True)
    return Speed(
        tokens_per_s=medians["speculative"],
        tokens_per_s_plain=medians["plain"],
        tokens_per_s_transformers=medians.get("transformers"),
        speedup=statistics.median(slow / fast for slow, fast in pairs),
        draft_ms=statistics.median(speculative.draft_ms or [0.0]),
        verify_ms=statistics.median(speculative.verify_ms or [0.0]),
        target_ms=statistics.median(plain.verify_ms or [0.0]),
        seconds={name: tuple(found) for name, found in seconds.items()},
    )


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


def _engine(
    target: Target, parts: Parts | None, times: _RoundTimes, *, max_batch: int, max_positions: int
) -> Contender:
    engine = Engine(target, parts, max_batch=max_batch, max_positions=max_positions, observers=[times])

    def run(block: Block, params: Sequence[SamplingParams]) -> float:
        started = time.perf_counter()
        engine.run(block, params)
        return time.perf_counter() - started

    return run


def _transformers(target: Target) -> Contender:
    def run(block: Block, params: Sequence[SamplingParams]) -> float:
        rows = [torch.tensor([list(prompt)], device=target.device) for prompt in block]
        with _own_attention(target), torch.random.fork_rng(devices=[]):
            started = time.perf_counter()
            for tokens, one in zip(rows, params, strict=True):
                options = _generation_options(one)
                target.model.generate(tokens, attention_mask=torch.ones_like(tokens), **options).tolist()
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
