"""The engine over a tiny float64 model: exact, independent of company, and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import deepspec.engine.loop as loop_module
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target
from deepspec.types import RoundRecord
from tests.tiny_models import VOCAB, masked_target

NUM_TOKENS = 16
STRATEGIES = ("dflash", "dspark")
POLICIES = ("fixed", "threshold")


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


def _parts(target: Target, name: str = "dspark", *, policy: str = "fixed", verifier: str = "token") -> Parts:
    strategy = Strategy.named(name).replace(
        draft_length=4,
        drafter={"num_layers": 1, "num_target_layers": 2},
        head={"confidence": "linear"},
        policy={"type": policy},
        verifier={"type": verifier},
    )
    torch.manual_seed(0)
    parts = strategy.build(target.info)
    parts.modules().double()
    return parts


def _prompts(num: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (num,), generator=generator).tolist()
    return [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def _params(num: int, temperature: float = 1.0) -> list[SamplingParams]:
    return [SamplingParams(temperature=temperature, seed=i, max_tokens=NUM_TOKENS) for i in range(num)]


def _run(
    target: Target, parts: Parts | None, num: int = 7, *, temperature: float = 1.0, **options: int
) -> list[tuple[int, ...]]:
    engine = Engine(target, parts, max_positions=128, **options)
    return [c.tokens for c in engine.run(_prompts(num), _params(num, temperature))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_delta_rule_equals_plain_decoding(target: Target, name: str, policy: str) -> None:
    parts = _parts(target, name, policy=policy, verifier="delta")
    for temperature in (0.0, 1.0):
        assert _run(target, parts, temperature=temperature) == _run(target, None, temperature=temperature)


@pytest.mark.parametrize("verifier", ["token", "delta"])
def test_greedy_speculative_decoding_equals_greedy_plain_decoding(target: Target, verifier: str) -> None:
    assert _run(target, _parts(target, verifier=verifier), temperature=0.0) == _run(
        target, None, temperature=0.0
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_are_the_same_alone_and_in_batches(target: Target, policy: str) -> None:
    parts = _parts(target, policy=policy)
    alone = _run(target, parts, 64, max_batch=1)
    assert _run(target, parts, 64, max_batch=7, prefill_chunk=5) == alone
    assert _run(target, parts, 64, max_batch=64) == alone


def test_admission_order_and_cancelled_neighbours_do_not_matter(target: Target) -> None:
    parts = _parts(target)
    prompts, params = _prompts(12), _params(12)
    expected = _run(target, parts, 12, max_batch=12)
    engine = Engine(target, parts, max_batch=5, max_positions=128)
    order = [11, 3, 7, 0, 5, 1, 9, 2, 10, 4, 8, 6]
    numbers = {}
    for step, i in enumerate(order):
        numbers[i] = engine.submit(prompts[i], params[i])
        if step % 3 == 0:
            engine.step()
            doomed = engine.submit(prompts[i], SamplingParams(seed=99, max_tokens=NUM_TOKENS))
            engine.step()
            engine.cancel(doomed)
    while engine.has_work:
        engine.step()
    assert [engine.completions[numbers[i]].tokens for i in range(12)] == expected


def test_a_cancelled_request_keeps_what_it_had_and_frees_its_slot(target: Target) -> None:
    engine = Engine(target, None, max_batch=1, max_positions=128)
    first = engine.submit([1, 2, 3], SamplingParams(max_tokens=50))
    second = engine.submit([4], SamplingParams(max_tokens=3))
    for _ in range(4):
        engine.step()
    engine.cancel(first)
    events = engine.step()
    assert (events[0].request_id, events[0].finish_reason) == (first, "cancelled")
    while engine.has_work:
        engine.step()
    assert len(engine.completions[first].tokens) == 4
    assert len(engine.completions[second].tokens) == 3


def test_two_engines_on_the_same_parts_do_not_disturb_each_other(target: Target) -> None:
    parts = _parts(target)
    expected = _run(target, parts, 4)
    first, second = (Engine(target, parts, max_batch=size, max_positions=128) for size in (4, 1))
    streams = [engine.stream(_prompts(4), _params(4)) for engine in (first, second)]
    got: list[dict[int, list[int]]] = [{i: [] for i in range(4)} for _ in streams]
    for events in zip(*streams, strict=False):
        for tokens, event in zip(got, events, strict=True):
            tokens[event.request_id] += event.tokens
    for stream, tokens in zip(streams, got, strict=True):
        for event in stream:
            tokens[event.request_id] += event.tokens
        assert all(expected[i][: len(tokens[i])] == tuple(tokens[i]) for i in range(4))


def test_an_abandoned_stream_leaves_no_request_behind(target: Target) -> None:
    engine = Engine(target, None, max_positions=128)
    stream = engine.stream(_prompts(3), _params(3))
    next(stream)
    stream.close()
    assert not engine.has_work
    assert engine.completions == {}


def test_a_bad_prompt_queues_none_of_its_batch(target: Target) -> None:
    engine = Engine(target, None, max_positions=128)
    with pytest.raises(ConfigError, match="empty"):
        engine.run([[1], [2], []], SamplingParams(max_tokens=2))
    assert not engine.has_work


def test_stop_tokens_end_the_text_and_are_part_of_it(target: Target) -> None:
    parts = _parts(target)
    free = _run(target, parts, 1)[0]
    stop = free[5]
    params = SamplingParams(seed=0, max_tokens=NUM_TOKENS, stop_token_ids=(stop,))
    done = Engine(target, parts, max_positions=128).run(_prompts(1), params)[0]
    assert done.tokens == free[: free.index(stop) + 1]
    assert done.finish_reason == "stop"


def test_ignoring_stops_ignores_the_targets_own_and_no_others(target: Target) -> None:
    free = _run(target, None, 1)[0]
    stopping = replace(target, stop_token_ids=(free[2],))
    found = [
        Engine(stopping, None, max_positions=128).run(
            _prompts(1), SamplingParams(seed=0, max_tokens=NUM_TOKENS, ignore_stop=True, stop_token_ids=ids)
        )[0]
        for ids in ((), (free[5],))
    ]
    assert (found[0].tokens, found[0].finish_reason) == (free, "length")
    assert (found[1].tokens, found[1].finish_reason) == (free[: free.index(free[5]) + 1], "stop")


def test_streaming_yields_the_same_tokens_as_running(target: Target) -> None:
    parts = _parts(target)
    expected = _run(target, parts, 5)
    got: dict[int, list[int]] = {i: [] for i in range(5)}
    for event in Engine(target, parts, max_positions=128).stream(_prompts(5), _params(5)):
        got[event.request_id] += event.tokens
    assert [tuple(got[i]) for i in range(5)] == expected


def _records(target: Target, parts: Parts | None, num: int = 6) -> list[RoundRecord]:
    records: list[RoundRecord] = []
    Engine(target, parts, max_positions=128, max_batch=num, observers=[records.append]).run(
        _prompts(num), _params(num)
    )
    return records


def test_rounds_account_for_every_token(target: Target) -> None:
    rounds = [r for record in _records(target, _parts(target)) for r in record.requests]
    for r in rounds:
        assert 0 <= r.accepted <= r.verified <= r.drafted == 4
        assert r.emitted == len(r.tokens) <= r.accepted + 1
        assert (r.rejected is None) == (r.accepted == r.verified)
    per_request = [sum(r.emitted for r in rounds if r.request_id == i) for i in range(6)]
    assert per_request == [NUM_TOKENS - 1] * 6  # the first token belongs to the prompt


def test_one_target_forward_a_round_and_none_besides(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = Target.forward
    monkeypatch.setattr(Target, "forward", lambda *args: calls.append(1) or forward(*args))
    records = _records(target, _parts(target), 1)
    assert len(calls) == len(records)
    assert sum(len(record.requests) for record in records) == len(calls) - 1


class _HostCopies(TorchDispatchMode):
    """Counts operations that make the host wait for a value."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "item")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.count += any(name in str(func) for name in self.waiting)
        return func(*args, **(kwargs or {}))


def test_one_host_copy_a_round(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    to_host = loop_module.to_host
    monkeypatch.setattr(loop_module, "to_host", lambda *args: copies.append(1) or to_host(*args))
    with _HostCopies() as mode:
        records = _records(target, _parts(target))
    assert len(copies) == len(records)
    assert mode.count == 0


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {"max_tokens": 4}, "empty"),
        ([VOCAB], {"max_tokens": 4}, "vocabulary"),
        ([1] * 100, {"max_tokens": 100}, "max_positions"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    target: Target, prompt: list[int], params: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(target, None, max_positions=128).submit(prompt, SamplingParams(**params))


def test_a_policy_that_reads_confidence_needs_a_head_that_gives_it(target: Target) -> None:
    strategy = Strategy.named("dflash").replace(policy="threshold", drafter={"num_target_layers": 2})
    with pytest.raises(ConfigError, match="confidence"):
        Engine(target, strategy.build(target.info), max_positions=128)
