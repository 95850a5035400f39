"""Packed, ragged, rolled-back forwards equal one-by-one forwards of the unmodified model."""

from __future__ import annotations

import copy

import pytest
import torch

from deepspec.target.model import Target, make_target
from deepspec.types import Span, TokenBatch
from tests.tiny_models import FAMILIES, VOCAB, make

# float64 weights; transformers computes norms and rotary angles in float32, hence not 1e-12.
TOLERANCE = 2e-5


def _pair(family: str) -> tuple[Target, torch.nn.Module]:
    model = make(family)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return make_target(model), plain


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_rolled_back_steps_equal_plain_forwards(family: str) -> None:
    target, plain = _pair(family)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, VOCAB, (n,), generator=generator) for n in (5, 40, 11, 7)]
    cache = target.new_slots(6, 128)
    slots = [3, 0, 1, 5]
    spans = [Span(slot, 0, len(text)) for slot, text in zip(slots, texts, strict=True)]
    with torch.no_grad():
        target.forward(torch.cat(texts), spans, cache, ())
        for step in range(5):
            active = [i for i in range(4) if i != step % 4]
            lengths = [int(torch.randint(1, 9, (1,), generator=generator)) for _ in active]
            new = [torch.randint(0, VOCAB, (n,), generator=generator) for n in lengths]
            spans = [Span(slots[i], len(texts[i]), n) for i, n in zip(active, lengths, strict=True)]
            out = target.forward(torch.cat(new), spans, cache, (1,))
            logits = target.logits(out.last_hidden).split(lengths)
            for i, block, ours in zip(active, new, logits, strict=True):
                whole = torch.cat([texts[i], block])
                theirs = plain(input_ids=whole[None], use_cache=False).logits[0, -len(block) :]
                torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
                keep = int(torch.randint(1, len(block) + 1, (1,), generator=generator))
                texts[i] = torch.cat([texts[i], block[:keep]])


@pytest.mark.parametrize("family", FAMILIES)
def test_tapped_features_are_the_layers_outputs(family: str) -> None:
    target, plain = _pair(family)
    tokens = torch.arange(20) % VOCAB
    with torch.no_grad():
        states = plain(input_ids=tokens[None], use_cache=False, output_hidden_states=True).hidden_states
        ours = target.forward(tokens, [Span(0, 0, 20)], None, (0, 2))
    torch.testing.assert_close(
        ours.tapped, torch.cat([states[1][0], states[3][0]], -1), atol=TOLERANCE, rtol=TOLERANCE
    )
    torch.testing.assert_close(ours.last_hidden, states[-1][0], atol=TOLERANCE, rtol=TOLERANCE)


def test_documents_packed_into_a_row_do_not_see_each_other() -> None:
    target, _ = _pair("qwen3")
    tokens = torch.arange(24)[None] % VOCAB
    segments = torch.tensor([[0] * 9 + [1] * 11 + [-1] * 4])
    positions = torch.tensor([[*range(9), *range(11), 0, 0, 0, 0]])
    batch = TokenBatch(tokens, segments, positions, segments >= 0)
    packed = target.features(batch, (1,))
    alone = target.forward(tokens[0, 9:20], [Span(0, 0, 11)], None, (1,))
    torch.testing.assert_close(packed.tapped[0, 9:20], alone.tapped, atol=TOLERANCE, rtol=TOLERANCE)
    assert packed.last_hidden[0, 20:].abs().sum() == 0


def test_the_last_layer_cannot_be_tapped() -> None:
    target, _ = _pair("qwen3")
    with pytest.raises(Exception, match="never the last"):
        target.check_layers((3,))
