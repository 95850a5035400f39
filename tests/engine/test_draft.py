"""Drafting: training's logits, a confidence known before the draw, and a drafter that misses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deepspec.engine.halves as halves_module
from deepspec.engine import Engine, SamplingParams
from deepspec.engine.draft import Drafted, readout_logits, run_draft
from deepspec.sampling import batch_sampling
from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.types import Anchors, Span
from tests.exact_statistics.compositions import build, tiny_target

DRAFT_LENGTH, NUM_REQUESTS, VOCAB, TEMPERATURE = 3, 4, 6, 1.3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB, initializer_range=0.2)


def _parts(target: Target, confidence: str = "linear") -> Parts:
    head = {"type": "markov", "confidence": confidence}
    return build(target.info, "dspark", DRAFT_LENGTH, target.dtype, head=head)


def _drafted(parts: Parts) -> tuple[Anchors, Drafted]:
    parts.drafter.allocate(NUM_REQUESTS, 16, torch.float64, CPU)
    places = torch.arange(NUM_REQUESTS)
    spans = tuple(Span(slot, 0, 1) for slot in range(NUM_REQUESTS))
    anchors = Anchors(places, places % VOCAB, torch.zeros_like(places), spans, DRAFT_LENGTH)
    sampling = batch_sampling([SamplingParams(temperature=TEMPERATURE)] * NUM_REQUESTS, VOCAB, CPU)
    noise = torch.rand(NUM_REQUESTS, DRAFT_LENGTH, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return anchors, run_draft(parts, anchors, sampling, noise.double())


@torch.no_grad()
def test_drafted_logits_are_those_of_training_on_the_drafted_tokens(target: Target) -> None:
    parts = _parts(target)
    anchors, drafted = _drafted(parts)
    previous = torch.cat([anchors.tokens[:, None], drafted.draft.tokens[:, :-1]], dim=1)
    hidden = parts.drafter.begin(anchors).hidden
    step = parts.head.block(previous, hidden)
    expected = readout_logits(hidden, parts.drafter.readout()) + step.latent @ parts.head.output_weight.T
    torch.testing.assert_close(drafted.draft.logits, expected)
    torch.testing.assert_close(drafted.confidence, step.confidence)


def test_row_max_is_the_rows_largest_probability_whatever_was_drawn(target: Target) -> None:
    _, drafted = _drafted(_parts(target, "row_max"))
    rows = (drafted.draft.logits / TEMPERATURE).softmax(dim=-1)
    assert (rows.argmax(dim=-1) != drafted.draft.tokens).any()
    torch.testing.assert_close(drafted.confidence.sigmoid(), rows.amax(dim=-1))


def test_a_drafter_knows_as_much_after_rounds_as_after_a_prompt_of_the_same_text(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, Tensor] = {}

    def observed(parts: Parts, anchors: Anchors, *rest: object) -> Drafted:
        drafted = run_draft(parts, anchors, *rest)
        seen[int(anchors.positions)] = drafted.draft.logits
        return drafted

    monkeypatch.setattr(halves_module, "run_draft", observed)
    parts, prompt = _parts(target), [0, 1, 2]

    def decode(text: list[int], num_tokens: int) -> tuple[int, ...]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens)
        return Engine(target, parts, max_positions=64).run([text], params)[0].tokens

    text = [*prompt, *decode(prompt, 24)]
    rounds = dict(seen)
    assert len(rounds) < 23  # some tokens were accepted
    for position, logits in rounds.items():
        seen.clear()
        decode(text[:position], 2)
        torch.testing.assert_close(seen[position], logits)
