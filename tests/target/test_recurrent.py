"""Recurrent states of requests: how far back they go, and that more than that is refused and not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepspec.errors import TargetError
from deepspec.target.recurrent import MOST_ROWS_BACK
from deepspec.types import Span
from tests.families import VOCAB, plain, target

FAMILY = "Qwen3.5"
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def hidden(tokens: Tensor) -> Tensor:
    return plain(FAMILY).model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]


def close(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours / scale, theirs / scale, atol=TOLERANCE, rtol=0)


def test_a_slot_begins_anew_with_its_next_request() -> None:
    made, tokens = target(FAMILY), text(30)
    cache = made.new_slots(2, 64)
    for part in (text(40, 1), tokens):
        found = made.forward(part, [Span(1, 0, len(part))], cache, ()).last_hidden
    close(found, hidden(tokens))


def test_a_slot_may_come_in_several_spans_of_one_forward() -> None:
    made, tokens = target(FAMILY), torch.stack([text(12), text(12, 1)])
    wanted = [hidden(row) for row in tokens]
    cache = made.new_slots(2, 16)
    made.forward(tokens[:, :5].flatten(), [Span(0, 0, 5), Span(1, 0, 5)], cache, ())
    made.forward(text(6, 2), [Span(0, 5, 3), Span(1, 5, 3)], cache, ())  # nothing of it is kept
    rows = torch.cat([tokens[0, 5:9], tokens[1, 5:11], tokens[0, 9:10], tokens[1, 11:]])
    spans = [Span(0, 5, 4), Span(1, 5, 6), Span(0, 9, 1), Span(1, 11, 1)]
    found = made.forward(rows, spans, cache, ()).last_hidden
    close(found, torch.cat([wanted[0][5:9], wanted[1][5:11], wanted[0][9:10], wanted[1][11:]]))


def test_what_is_not_settled_can_be_rolled_back_as_a_whole() -> None:
    decoder, tokens = target(FAMILY).decoder, text(20)
    cache = decoder.new_slots(1, 32)
    decoder(tokens[:9], [Span(0, 0, 9)], cache)
    decoder(tokens[9:10], [Span(0, 9, 1)], cache)
    for place, token in enumerate(text(5, 3).tolist(), start=10):  # drafts, one a forward
        decoder(torch.tensor([token]), [Span(0, place, 1)], cache, is_settled=False)
    close(decoder(tokens[9:15], [Span(0, 9, 6)], cache).last_hidden, hidden(tokens)[9:15])


@pytest.mark.parametrize("length", [MOST_ROWS_BACK, MOST_ROWS_BACK + 1])
def test_a_block_is_rolled_back_when_it_is_short_enough(length: int) -> None:
    made, tokens = target(FAMILY), text(5 + length + 4)
    cache = made.new_slots(1, 128)
    made.forward(tokens[:5], [Span(0, 0, 5)], cache, ())
    made.forward(tokens[5 : 5 + length], [Span(0, 5, length)], cache, ())
    again = [Span(0, 8, 4)]
    if length <= MOST_ROWS_BACK:
        close(made.forward(tokens[8:12], again, cache, ()).last_hidden, hidden(tokens)[8:12])
        return
    with pytest.raises(TargetError, match="Qwen3.5 cannot go on at position 8 of slot 0: .* lower draft"):
        made.forward(tokens[8:12], again, cache, ())
    end = 5 + length
    close(made.forward(tokens[end:], [Span(0, end, 4)], cache, ()).last_hidden, hidden(tokens)[end:])


def test_a_position_past_the_end_is_refused() -> None:
    made = target(FAMILY)
    cache = made.new_slots(1, 64)
    made.forward(text(5), [Span(0, 0, 5)], cache, ())
    with pytest.raises(TargetError, match="cannot go on at position 7 of slot 0"):
        made.forward(text(2), [Span(0, 7, 2)], cache, ())


def test_states_are_worked_on_for_all_requests_of_a_length_at_once() -> None:
    """Calls of a layer's own code in a verify step: one for each length, one for each accepted number."""
    made = target(FAMILY)
    cache = made.new_slots(8, 64)
    made.forward(text(40), [Span(slot, 0, 5) for slot in range(8)], cache, ())
    made.forward(text(32), [Span(slot, 5, 4) for slot in range(8)], cache, ())
    spans = [Span(slot, 6 + slot % 2, 4) for slot in range(8)]
    (wave,) = cache.recurrent.plan(spans, made.device, is_settled=True)
    assert sorted(len(batch.slots) for batch in wave.replays) == [4, 4]
    assert [len(batch.slots) for batch in wave.runs] == [8]
