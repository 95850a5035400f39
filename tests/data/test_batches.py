"""Packing keeps every token once and documents apart; batch k is the same whenever it is asked for."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.data import BatchSampler, TokenizedCorpus, batches
from deepspec.data.batches import pack
from deepspec.errors import ConfigError, DataError


def corpus_of(lengths):
    """Piece i is i*1000, i*1000 + 1, ..., every third token not supervised."""
    tokens = torch.cat([torch.arange(n) + 1000 * i for i, n in enumerate(lengths, start=1)])
    return TokenizedCorpus(
        tokens=tokens.int(),
        supervised=tokens % 3 != 0,
        ends=torch.tensor(lengths).cumsum(0),
        documents=torch.arange(len(lengths)),
    )


def same(first, second):
    names = ("tokens", "segments", "positions", "supervised")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


piece_lengths = st.lists(st.integers(2, 24), min_size=1, max_size=40)


@given(piece_lengths, st.integers(1, 5))
def test_one_epoch_holds_every_token_once_and_keeps_documents_apart(lengths, sequences):
    corpus = corpus_of(lengths)
    sampler = BatchSampler(corpus, sequences=sequences, sequence_length=24, seed=1)
    seen = []
    for batch in sampler.rows_once():
        used = batch.segments >= 0
        seen += batch.tokens[used].tolist()
        assert torch.equal(batch.positions[used], batch.tokens[used] % 1000)
        assert torch.equal(batch.supervised[used], batch.tokens[used] % 3 != 0)
        assert not batch.supervised[~used].any()
        for row in range(len(batch.tokens)):
            # A segment is one piece, whole and contiguous; padding comes last.
            runs = [
                (segment, [int(batch.tokens[row, c]) for c in columns])
                for segment, columns in itertools.groupby(
                    range(24), key=lambda c, r=row: int(batch.segments[r, c])
                )
            ]
            names = [segment for segment, _ in runs]
            assert names in ([*range(len(names))], [*range(len(names) - 1), -1])
            for segment, tokens in runs:
                if segment >= 0:
                    piece = tokens[0] // 1000
                    assert tokens == [piece * 1000 + i for i in range(lengths[piece - 1])]
    assert sorted(seen) == sorted(corpus.tokens.tolist())


@given(piece_lengths)
def test_packing_wastes_less_than_half(lengths):
    rows = pack(torch.tensor(lengths), 24)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    fills = [sum(lengths[piece] for piece in row) for row in rows]
    assert max(fills) <= 24
    assert sum(fills) * 2 > 24 * (len(rows) - 1)


def test_pieces_that_fill_a_row_exactly_are_put_together():
    assert list(pack(torch.tensor([8, 12, 16, 12, 24]), 24)) == [[4], [2, 0], [1, 3]]


@given(piece_lengths, st.integers(1, 4), st.integers(0, 30))
def test_resuming_at_a_step_continues_the_uninterrupted_sequence(lengths, sequences, start):
    options = {"sequences": sequences, "sequence_length": 24, "seed": 5}
    whole = list(itertools.islice(batches(corpus_of(lengths), **options), start + 3))
    resumed = itertools.islice(batches(corpus_of(lengths), **options, start_step=start), 3)
    for expected, got in zip(whole[start:], resumed, strict=True):
        assert same(expected, got)


def test_each_epoch_shows_every_row_once_in_an_order_of_its_own():
    lengths = [20] * 10
    stream = batches(corpus_of(lengths), sequences=4, sequence_length=20, seed=0)
    firsts = [int(t) for batch in itertools.islice(stream, 5) for t in batch.tokens[:, 0]]
    epochs = firsts[:10], firsts[10:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [1000 * i for i in range(1, 11)]
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_the_seed():
    orders = Counter(
        tuple(
            next(batches(corpus_of([20] * 10), sequences=10, sequence_length=20, seed=s))
            .tokens[:, 0]
            .tolist()
        )
        for s in range(5)
    )
    assert len(orders) == 5


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(ConfigError, match="pieces of up to 20 tokens, more than sequence_length=16"):
        BatchSampler(corpus_of([20]), sequences=1, sequence_length=16, seed=0)
    with pytest.raises(ConfigError, match="at least 1 sequence"):
        BatchSampler(corpus_of([20]), sequences=0, sequence_length=32, seed=0)
    with pytest.raises(DataError, match="the corpus is empty"):
        BatchSampler(corpus_of([20]).select(torch.arange(0)), sequences=1, sequence_length=32, seed=0)
