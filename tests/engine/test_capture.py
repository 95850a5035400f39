"""What is recorded decides, bit for bit, as what is launched anew; what cannot be recorded is not."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.engine import Engine, SamplingParams, capture
from deepspec.engine.capture import Captured, mapped, takes_graphs
from deepspec.strategy import Parts
from deepspec.target import Target, make_target
from deepspec.types import Draft
from tests.engine.tape import Tape
from tests.exact_statistics.compositions import build, tiny_target

VOCAB, DRAFT_LENGTH, NUM_TOKENS = 12, 3, 40
#: In turns, so that batches of one size may need recordings of their own.
SAMPLING = ({"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9})


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB, initializer_range=0.2)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "CALLS_BEFORE", 1)


def _parts(target: Target, name: str = "dspark", **parts: Any) -> Parts:
    return build(target.info, name, DRAFT_LENGTH, target.dtype, **parts)


def _decode(
    target: Target, parts: Parts, num: int, tape: Tape | None = None, *, sampling: Any = SAMPLING
) -> tuple[list[tuple[int, ...]], Engine]:
    """Requests of unequal lengths, so that R shrinks; rows are those of a device that nobody waits for."""
    engine = Engine(target, parts, max_batch=num, max_positions=96)
    engine._loop.packs_rows = False
    if tape is not None:
        engine._loop.halves.capture(lambda device: tape)
    params = [
        SamplingParams(seed=i, max_tokens=NUM_TOKENS + 6 * i, **sampling[i % len(sampling)])
        for i in range(num)
    ]
    return [one.tokens for one in engine.run([[i % 9, 1] for i in range(num)], params)], engine


def _recordings(captured: Captured[Any]) -> list[Any]:
    """Those that are kept."""
    return [one for one in captured._known.values() if not isinstance(one, int)]


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("verifier", ["token", "block", "delta"])
@pytest.mark.parametrize("policy", ["fixed", "threshold", "prefix"])
def test_replayed_rounds_emit_the_same_tokens(target: Target, verifier: str, policy: str) -> None:
    for head in ("markov", "rnn"):
        parts = _parts(target, policy=policy, verifier=verifier, head={"type": head, "confidence": "linear"})
        wanted, _ = _decode(target, parts, 4)
        tape = Tape()
        found, engine = _decode(target, parts, 4, tape)
        assert found == wanted
        both = engine._loop.halves.captured_block, engine._loop.halves.captured_verdict
        assert all(len(_recordings(captured)) >= 3 for captured in both)  # of R = 4..1
        assert tape.num_recorded == sum(len(_recordings(captured)) for captured in both)
        assert tape.num_replays > 30


@pytest.mark.usefixtures("_soon")
def test_drafts_are_verified_where_they_lie(target: Target) -> None:
    _, engine = _decode(target, _parts(target), 1, Tape())
    halves = engine._loop.halves
    (block,), (verdict,) = _recordings(halves.captured_block), _recordings(halves.captured_verdict)
    assert any(held is block.result[0].draft.logits for held in verdict.given)


@pytest.fixture
def work() -> tuple[list[int], Captured[Draft]]:
    """A piece of work that notes the sizes of its calls, recorded at the second call of a size."""
    sizes: list[int] = []

    def scaled(draft: Draft, factor: Tensor, shift: int) -> Draft:
        sizes.append(len(factor))
        ones = draft.log_q * factor[:, None] + shift
        return Draft(draft.tokens + shift, None, ones, ones.exp())

    return sizes, Captured(scaled, Tape())


def _draft(num: int, seed: int = 0) -> tuple[Draft, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(num, 2, generator=generator)
    return Draft(torch.arange(2 * num).view(num, 2), None, real, real), torch.rand(num, generator=generator)


@pytest.mark.usefixtures("_soon")
def test_shapes_and_host_values_have_recordings_of_their_own(work: tuple[list[int], Captured[Draft]]) -> None:
    sizes, captured = work
    for num, shift, is_called in [(3, 1, True), (3, 1, True), (3, 1, False), (3, 2, True), (2, 1, True)]:
        sizes.clear()
        captured(*_draft(num), shift)
        assert bool(sizes) == is_called
    assert len(_recordings(captured)) == 1


@pytest.mark.usefixtures("_soon")
def test_results_follow_their_input_and_are_the_callers_own(work: tuple[list[int], Captured[Draft]]) -> None:
    _, captured = work
    given = [_draft(3, seed) for seed in range(5)]
    found = [captured(draft, factor, 1) for draft, factor in given]
    for (draft, factor), one in zip(given, found, strict=True):
        assert torch.equal(one.log_sum_exp, draft.log_q * factor[:, None] + 1)
        assert torch.equal(one.tokens, draft.tokens + 1)
    places = [one.log_q.data_ptr() for one in found]
    assert len(set(places)) == 5


@pytest.mark.usefixtures("_soon")
def test_no_more_than_so_many_recordings_are_kept(
    work: tuple[list[int], Captured[Draft]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "MOST", 3)
    sizes, captured = work
    for num in (1, 2, 3, 4, 5):
        for _ in range(2):
            captured(*_draft(num), 0)
    assert len(_recordings(captured)) == 3
    sizes.clear()
    for num in (5, 4, 3):
        captured(*_draft(num), 0)
    assert not sizes
    captured(*_draft(1), 0)
    assert sizes == [1]


def test_a_shape_that_comes_a_few_times_is_not_recorded(work: tuple[list[int], Captured[Draft]]) -> None:
    _, captured = work
    for _ in range(capture.CALLS_BEFORE):
        captured(*_draft(2), 0)
    assert len(_recordings(captured)) == 0
    captured(*_draft(2), 0)
    assert len(_recordings(captured)) == 1


@pytest.mark.usefixtures("_soon")
def test_work_that_waits_runs_as_it_is_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def waits(value: Tensor) -> Tensor:
        return value * 2 if bool((value > 0).any()) else value

    tape = Tape()
    captured = Captured(waits, tape)
    with caplog.at_level(logging.INFO, logger="deepspec"):
        for sign in (1, -1, 1, -1, 1):
            assert captured(torch.full((2,), float(sign))).tolist() == [2.0 if sign > 0 else -1.0] * 2
    assert tape.num_recorded == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("waits runs without CUDA graphs, since it could not be recorded: ")


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("what", ["eagle3", "unknown policy", "unknown verifier"])
def test_parts_that_cannot_be_recorded_decode_all_the_same(
    target: Target, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts = _parts(target, "eagle3" if what == "eagle3" else "dspark")
    if what != "eagle3":
        monkeypatch.setattr(type(getattr(parts, what.split()[1])), "recordable", False)
    wanted, _ = _decode(target, parts, 2)
    with caplog.at_level(logging.INFO, logger="deepspec"):
        found, engine = _decode(target, parts, 2, Tape())
    assert found == wanted
    assert len([one for one in caplog.records if "CUDA graphs" in one.getMessage()]) == 1
    halves = engine._loop.halves
    assert (halves.captured_verdict is None) == (what == "unknown verifier")
    assert (halves.captured_block is None) == (what != "unknown verifier")


def test_only_a_gpu_takes_graphs_and_not_when_they_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not takes_graphs(torch.device("cpu"))
    assert takes_graphs(torch.device("cuda"))
    monkeypatch.setenv("DEEPSPEC_CUDA_GRAPHS", "0")
    assert not takes_graphs(torch.device("cuda"))


def test_values_without_tensors_stay_as_they_are() -> None:
    assert mapped((1, None, "a"), torch.clone) == (1, None, "a")


@pytest.mark.gpu
@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("verifier", ["token", "block", "delta"])
def test_a_gpu_replays_what_it_would_launch(verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_target(VOCAB, torch.float32, initializer_range=0.2)
    target = make_target(plain.model.to("cuda"))
    target = replace(target, info=replace(target.info, mask_token_id=VOCAB - 1))
    parts = _parts(target, policy="threshold", verifier=verifier)
    parts.modules().to("cuda")
    found, engine = _decode(target, parts, 4)
    both = engine._loop.halves.captured_block, engine._loop.halves.captured_verdict
    assert all(len(_recordings(captured)) >= 3 for captured in both)
    monkeypatch.setenv("DEEPSPEC_CUDA_GRAPHS", "0")
    wanted, engine = _decode(target, parts, 4)
    assert engine._loop.halves.captured_block is None
    assert found == wanted
