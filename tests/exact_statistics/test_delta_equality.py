"""Under the delta rule every composition gives plain decoding's own tokens, whatever else the engine does.

Requests come in any order with steps between them, beside others that are cancelled at any moment, into any
number of KV slots and through prompt chunks of any size; float64, so nothing is left to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.engine import Engine, SamplingParams
from deepspec.strategy import Parts
from deepspec.target import Target
from tests.exact_statistics.compositions import POLICIES, STRATEGIES, THOROUGH, build, tiny_target

VOCAB, DRAFT_LENGTH, NUM_TOKENS, NUM_REQUESTS = 12, 3, 7, 8
PROMPTS = [[(7 * i + j) % VOCAB for j in range(1 + 3 * i % 11)] for i in range(NUM_REQUESTS)]
PARAMS = [
    SamplingParams(temperature=(0.0, 0.8, 1.0)[i % 3], top_p=(1.0, 0.9)[i % 2], seed=i, max_tokens=NUM_TOKENS)
    for i in range(NUM_REQUESTS)
]


@dataclass(frozen=True)
class Arrival:
    """A request comes, then ``steps`` steps; a neighbour that came with it is cancelled some steps later."""

    request: int
    steps: int
    doomed_after: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    order = draw(st.permutations(range(NUM_REQUESTS)))
    doomed = st.none() | st.integers(0, 5)
    return [Arrival(request, draw(st.integers(0, 3)), draw(doomed)) for request in order]


@cache
def _target() -> Target:
    return tiny_target(VOCAB, initializer_range=0.25)


@cache
def _parts(name: str, policy: str) -> Parts:
    target = _target()
    return build(target.info, name, DRAFT_LENGTH, target.dtype, policy=policy, verifier="delta")


@cache
def _plain() -> list[tuple[int, ...]]:
    return [done.tokens for done in Engine(_target(), max_batch=1).run(PROMPTS, PARAMS)]


@pytest.mark.parametrize("max_batch", [1, 3, 16])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=12 if THOROUGH else 4)
@given(schedule=arrivals(), chunk=st.integers(1, 20))
def test_every_schedule_gives_plain_decodings_tokens(
    name: str, policy: str, max_batch: int, schedule: list[Arrival], chunk: int
) -> None:
    engine = Engine(
        _target(), _parts(name, policy), max_batch=max_batch, max_positions=40, prefill_chunk=chunk
    )
    numbers: dict[int, int] = {}
    deadlines: dict[int, int] = {}
    clock = 0

    def step() -> None:
        nonlocal clock
        for number in [n for n, time in deadlines.items() if time == clock]:
            engine.cancel(number)
        engine.step()
        clock += 1

    for arrival in schedule:
        numbers[arrival.request] = engine.submit(PROMPTS[arrival.request], PARAMS[arrival.request])
        if arrival.doomed_after is not None:
            doomed = engine.submit(PROMPTS[arrival.request], SamplingParams(seed=99, max_tokens=20))
            deadlines[doomed] = clock + arrival.doomed_after
        for _ in range(arrival.steps):
            step()
    while engine.has_work:
        step()
    assert [engine.completions[numbers[i]].tokens for i in range(NUM_REQUESTS)] == _plain()
