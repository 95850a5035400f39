"""A causal language model over packed rows, as drafters that are one use it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepspec.errors import TargetError
from deepspec.target import PackedDecoder, make_target
from deepspec.types import Span, TokenBatch
from tests.tiny_models import FAMILIES, VOCAB, make

# float64 weights; transformers computes norms and rotary angles in float32, hence not 1e-12.
TOLERANCE = 2e-5


def _text() -> TokenBatch:
    tokens = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 12, [0] * 5 + [1] * 4 + [-1] * 3])
    positions = torch.tensor([[*range(12)], [*range(5), *range(4), 0, 0, 0]])
    return TokenBatch(tokens, segments, positions, segments >= 0)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_5"])
def test_gradients_of_training_text_are_the_plain_models(family: str) -> None:
    model, batch = make(family).requires_grad_(), _text()
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    decoder = PackedDecoder(model, name="draft")
    decoder.logits(decoder.read(batch).last_hidden[batch.segments >= 0]).square().mean().backward()
    texts = (batch.tokens[0], batch.tokens[1, :5], batch.tokens[1, 5:9])
    logits = [plain(input_ids=text[None], use_cache=False).logits[0] for text in texts]
    torch.cat(logits).square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_a_slot_may_come_in_several_spans_of_one_forward() -> None:
    decoder = PackedDecoder(make("qwen3"), name="draft")
    tokens = _text().tokens
    whole = decoder(tokens.flatten(), [Span(0, 0, 12), Span(1, 0, 12)], None).last_hidden.view(2, 12, -1)
    cache = decoder.new_slots(2, 16)
    decoder(tokens[:, :5].flatten(), [Span(0, 0, 5), Span(1, 0, 5)], cache)
    rows = torch.cat([tokens[0, 5:9], tokens[1, 5:11], tokens[0, 9:10], tokens[1, 11:]])
    spans = [Span(0, 5, 4), Span(1, 5, 6), Span(0, 9, 1), Span(1, 11, 1)]
    found = decoder(rows, spans, cache).last_hidden
    expected = torch.cat([whole[0, 5:9], whole[1, 5:11], whole[0, 9:10], whole[1, 11:]])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_frequencies_are_not_rounded_with_the_weights(family: str) -> None:
    parts = nn.ModuleDict({"draft": PackedDecoder(make(family), name="draft")})
    before = {name: buffer.clone() for name, buffer in parts.named_buffers()}
    parts.to(torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in parts.parameters()} == {torch.bfloat16}
    assert any("inv_freq" in name for name in before)
    for name, buffer in parts.named_buffers():
        torch.testing.assert_close(buffer, before[name], atol=0, rtol=0)


def test_a_target_runs_through_the_same_code() -> None:
    target = make_target(make("qwen3"))
    assert isinstance(target.decoder, PackedDecoder)
    assert target.model is target.decoder.model


def test_layers_with_another_state_are_refused_by_name() -> None:
    model = make("qwen3")
    for kind in ("linear_attention", "chunked_attention"):  # the former without a mixer that we could drive
        model.config.layer_types = [kind, *model.config.layer_types[1:]]
        with pytest.raises(TargetError, match=f"tiny has {kind} layers of a kind that is not supported"):
            PackedDecoder(model, name="tiny")


def test_logits_that_are_more_than_an_lm_head_are_refused() -> None:
    model = make("qwen3")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 3 * plain(hidden)
    with pytest.raises(TargetError, match="tiny computes logits by more than its LM head"):
        make_target(model, name="tiny")
