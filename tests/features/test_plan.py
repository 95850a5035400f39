"""What is kept of a piece is what some draft block may read, and each piece lies in one shard."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.data import TokenizedCorpus
from deepspec.features.plan import (
    Pieces,
    Shape,
    graded_positions,
    kept_last,
    num_context,
    piece_key,
    plan_shards,
)
from deepspec.train.anchors import sample_anchors
from deepspec.types import TokenBatch


def corpus(*pieces: list[int]) -> TokenizedCorpus:
    """All supervised."""
    tokens = torch.tensor([token for piece in pieces for token in piece], dtype=torch.int32)
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    return TokenizedCorpus(tokens, torch.ones(len(tokens), dtype=torch.bool), ends, torch.arange(len(pieces)))


@given(flags=st.lists(st.booleans(), min_size=2, max_size=24))
def test_what_is_kept_is_what_the_blocks_of_all_anchors_read(flags: list[bool]) -> None:
    length = len(flags)
    zeros = torch.zeros(1, length, dtype=torch.int64)
    batch = TokenBatch(zeros, zeros, torch.arange(length)[None], torch.tensor([flags]))
    blocks = sample_anchors(batch, length, draft_length=length, seed=0, step=0)
    read = {
        int(anchor) + k
        for anchor, valid in zip(blocks.columns, blocks.valid, strict=True)
        for k in range(length)
        if valid[k]
    }
    graded = graded_positions(batch.supervised[0])
    assert set(graded.nonzero()[:, 0].tolist()) == read
    assert num_context(graded) == max(blocks.columns.tolist(), default=0)
    context = set(range(num_context(graded)))
    assert set(kept_last(graded, before_anchors=True).tolist()) == read | context
    assert set(kept_last(graded, before_anchors=False).tolist()) == read


def test_pieces_are_told_apart_by_tokens_and_by_what_is_graded_and_repeats_are_kept_once() -> None:
    found = Pieces.of(corpus([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4]))
    assert sorted(found.numbers.tolist()) == [0, 1]
    assert found.num_tokens == 12
    tokens, graded = torch.tensor([1, 2, 3, 4]), torch.tensor([False, True, True, False])
    [place] = (found.numbers == 0).nonzero()[:, 0].tolist()
    assert piece_key(tokens, graded) == int(found.keys[place])
    assert piece_key(tokens, torch.tensor([False, True, False, False])) not in found.keys.tolist()


def test_the_order_of_documents_does_not_make_another_text() -> None:
    one, other = Pieces.of(corpus([1, 2, 3], [4, 5, 6])), Pieces.of(corpus([4, 5, 6], [1, 2, 3]))
    assert one.digest == other.digest != Pieces.of(corpus([1, 2, 3])).digest
    assert one.keys.equal(other.keys)
    assert (one.numbers == 1 - other.numbers).all()


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30),
    limit=st.integers(1, 20_000),
    before_anchors=st.booleans(),
)
def test_shards_hold_every_piece_once_and_no_more_than_the_limit(
    lengths: list[int], limit: int, before_anchors: bool
) -> None:
    pieces = Pieces.of(corpus(*([number] * length for number, length in enumerate(lengths))))
    shape = Shape(num_layers=2, hidden_size=16, bits=16, last_before_anchors=before_anchors)
    shards = plan_shards(pieces, shape, limit)
    numbers = [number for shard in shards for number in range(shard.start, shard.stop)]
    assert numbers == list(range(len(lengths)))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for shard in shards:
        assert shard.stop == shard.start + 1 or shard.num_bytes <= limit + 1024
