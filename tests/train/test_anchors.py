"""Anchor sampling: which positions may start a block, how documents share a row, what the labels are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.train.anchors import blocks_at, sample_anchors, select_rows
from deepspec.types import TokenBatch


def make_batch(lengths: list[list[int]], width: int, supervised: torch.Tensor | None = None) -> TokenBatch:
    """Rows of documents of the given lengths; token values are unique, padding is 0."""
    rows = len(lengths)
    segments = torch.full((rows, width), -1)
    positions = torch.zeros((rows, width), dtype=torch.int64)
    for row, documents in enumerate(lengths):
        start = 0
        for number, length in enumerate(documents):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = torch.arange(length)
            start += length
    tokens = torch.where(segments >= 0, torch.arange(rows * width).view(rows, width) + 1, 0)
    marks = segments >= 0 if supervised is None else supervised & (segments >= 0)
    return TokenBatch(tokens, segments, positions, marks)


def test_labels_are_the_next_tokens_and_previous_tokens_are_shifted_by_one():
    batch = make_batch([[6]], 8)
    blocks = blocks_at(batch, torch.tensor([0, 0]), torch.tensor([1, 4]), draft_length=3)
    assert blocks.labels.tolist() == [[3, 4, 5], [6, 0, 0]]
    assert blocks.previous.tolist() == [[2, 3, 4], [5, 6, 0]]
    assert blocks.valid.tolist() == [[True, True, True], [True, False, False]]


def test_a_block_ends_at_the_first_unsupervised_token():
    marks = torch.tensor([[True, True, True, False, True, True]])
    blocks = blocks_at(make_batch([[6]], 6, marks), torch.tensor([0]), torch.tensor([1]), draft_length=4)
    assert blocks.valid.tolist() == [[True, False, False, False]]


def test_enough_anchors_take_every_candidate_and_no_other_position():
    marks = torch.tensor([[True, True, True, True, False, True, True, True, True, True]])
    batch = make_batch([[7, 3]], 10, marks)
    blocks = sample_anchors(batch, 99, draft_length=2, seed=0, step=0)
    # Not 0 and 7 (first of their documents), 3 (next is unsupervised), 4 (unsupervised), 6 and 9 (last).
    assert blocks.columns.tolist() == [1, 2, 5, 8]


def test_every_packed_document_gets_an_anchor_when_there_are_enough():
    batch = make_batch([[4, 4, 4, 100]], 120)
    for step in range(20):
        blocks = sample_anchors(batch, 8, draft_length=3, seed=1, step=step)
        assert set(batch.segments[0, blocks.columns].tolist()) == {0, 1, 2, 3}
        assert len(blocks.columns) == 8


def test_documents_share_a_row_in_proportion_to_their_candidates():
    batch = make_batch([[32, 62]], 100)
    blocks = sample_anchors(batch, 30, draft_length=3, seed=0, step=0)
    counts = batch.segments[0, blocks.columns].bincount().tolist()
    assert abs(counts[0] - 10) <= 1
    assert sum(counts) == 30


def test_the_same_seed_and_step_give_the_same_blocks_and_another_step_gives_others():
    batch = make_batch([[200], [90, 100]], 200)
    draws = [sample_anchors(batch, 10, draft_length=3, seed=3, step=s).columns.tolist() for s in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


def test_positions_are_drawn_uniformly():
    batch = make_batch([[42]], 42)
    drawn = torch.cat(
        [sample_anchors(batch, 4, draft_length=2, seed=0, step=s).columns for s in range(2_000)]
    )
    counts = drawn.bincount(minlength=42)[1:41].double()
    expected = 2_000 * 4 / 40
    assert float(((counts - expected) ** 2 / expected).sum()) < 90  # chi-square, 39 degrees: P < 1e-5


def test_a_batch_with_nothing_to_learn_gives_no_blocks():
    batch = make_batch([[5]], 8, torch.zeros((1, 8), dtype=torch.bool))
    assert sample_anchors(batch, 4, draft_length=3, seed=0, step=0).labels.shape == (0, 3)


def test_selected_rows_are_counted_from_the_first():
    batch = make_batch([[9], [9], [9]], 9)
    blocks = sample_anchors(batch, 3, draft_length=2, seed=0, step=0)
    part = select_rows(blocks, 1, 3)
    assert part.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert part.labels.equal(blocks.labels[3:])


@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    anchors=st.integers(1, 12),
    draft_length=st.integers(1, 5),
    seed=st.integers(0, 1_000),
)
def test_every_valid_label_is_supervised_and_of_its_anchors_document(lengths, anchors, draft_length, seed):
    marks = torch.rand((len(lengths), 40), generator=torch.Generator().manual_seed(seed)) < 0.8
    batch = make_batch(lengths, 40, marks)
    blocks = sample_anchors(batch, anchors, draft_length=draft_length, seed=seed, step=0)
    assert bool((blocks.rows.bincount(minlength=1) <= anchors).all())
    assert len({(r, c) for r, c in zip(blocks.rows.tolist(), blocks.columns.tolist(), strict=True)}) == len(
        blocks.rows
    )
    for row, column, labels, valid in zip(
        *(x.tolist() for x in (blocks.rows, blocks.columns, blocks.labels, blocks.valid)), strict=True
    ):
        assert batch.supervised[row, column]
        assert valid[0]
        expected = True
        for k in range(draft_length):
            place = column + k + 1
            expected = expected and place < 40 and bool(batch.supervised[row, place])
            expected = expected and int(batch.segments[row, place]) == int(batch.segments[row, column])
            assert valid[k] == expected
            assert labels[k] == (int(batch.tokens[row, place]) if expected else 0)
