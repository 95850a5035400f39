"""Training batches: pieces packed into rows, rows shuffled anew each epoch, batch k a function of k alone.

Short pieces share a row (best fit, longest first); ``segments`` keeps them apart and ``positions`` restart.
The packing is made once, so the row at place i of the endless sequence of epochs is known in closed form
and a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

import torch
from torch import Tensor

from deepspec.data.corpus import TokenizedCorpus
from deepspec.errors import ConfigError, DataError
from deepspec.types import TokenBatch


class BatchSampler:
    """Batches of ``sequences`` rows of ``sequence_length`` tokens from a corpus, on CPU."""

    def __init__(self, corpus: TokenizedCorpus, *, sequences: int, sequence_length: int, seed: int) -> None:
        if sequences < 1:
            raise ConfigError(f"a batch needs at least 1 sequence, not {sequences}")
        if corpus.num_pieces == 0:
            raise DataError("the corpus is empty, so there is nothing to make batches of")
        longest = int(corpus.lengths().max())
        if longest > sequence_length:
            raise ConfigError(
                f"the corpus was tokenised into pieces of up to {longest} tokens, more than "
                f"sequence_length={sequence_length}; tokenise it again with this length"
            )
        self.corpus = corpus
        self.sequences = sequences
        self.sequence_length = sequence_length
        self.seed = seed
        self._rows = pack(corpus.lengths(), sequence_length)
        self._starts = (corpus.ends - corpus.lengths()).tolist()
        self._ends = corpus.ends.tolist()
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self._rows)

    def batch(self, step: int) -> TokenBatch:
        """Batch number ``step``, from 0; epochs follow each other without a gap, also inside a batch."""
        first = step * self.sequences
        return self._collate([self._row_at(place) for place in range(first, first + self.sequences)])

    def rows_once(self) -> Iterator[TokenBatch]:
        """Every row once, unshuffled, for validation; the last batch may be smaller."""
        for first in range(0, self.num_rows, self.sequences):
            yield self._collate(self._rows[first : first + self.sequences])

    def _row_at(self, place: int) -> tuple[int, ...]:
        epoch, index = divmod(place, self.num_rows)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._order = (epoch, torch.randperm(self.num_rows, generator=generator).tolist())
        return self._rows[self._order[1][index]]

    def _collate(self, rows: list[tuple[int, ...]]) -> TokenBatch:
        shape = (len(rows), self.sequence_length)
        tokens = torch.zeros(shape, dtype=torch.int64)
        segments = torch.full(shape, -1, dtype=torch.int64)
        positions = torch.zeros(shape, dtype=torch.int64)
        supervised = torch.zeros(shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            column = 0
            for segment, piece in enumerate(row):
                start, end = self._starts[piece], self._ends[piece]
                place = (number, slice(column, column + end - start))
                tokens[place] = self.corpus.tokens[start:end].long()
                segments[place] = segment
                positions[place] = torch.arange(end - start)
                supervised[place] = self.corpus.supervised[start:end]
                column += end - start
        return TokenBatch(tokens=tokens, segments=segments, positions=positions, supervised=supervised)


def batches(
    corpus: TokenizedCorpus, *, sequences: int, sequence_length: int, seed: int, start_step: int = 0
) -> Iterator[TokenBatch]:
    """Batches without end, from number ``start_step`` on."""
    sampler = BatchSampler(corpus, sequences=sequences, sequence_length=sequence_length, seed=seed)
    step = start_step
    while True:
        yield sampler.batch(step)
        step += 1


def pack(lengths: Tensor, capacity: int) -> list[tuple[int, ...]]:
    """Group pieces into rows of at most ``capacity`` tokens: longest first, each where it fits best."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    sizes = lengths.tolist()
    for piece in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        size = sizes[piece]
        found = bisect.bisect_left(free, (size, -1))
        if found < len(free):
            room, row = free.pop(found)
            rows[row].append(piece)
        else:
            room, row = capacity, len(rows)
            rows.append([piece])
        if room > size:
            bisect.insort(free, (room - size, row))
    return [tuple(row) for row in rows]
