"""Training batches: pieces packed into rows, rows shuffled anew each epoch, batch k a function of k alone.

Short pieces share a row (best fit, longest first); ``segments`` keeps them apart and ``positions`` restart.
The packing is made once, so the row at place i of the endless sequence of epochs is known in closed form
and a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.data.corpus import TokenizedCorpus
from deepspec.errors import ConfigError, DataError
from deepspec.types import TokenBatch

#: Pieces that are packed together.
_WINDOW = 1 << 18


class BatchSampler:
    """Batches of ``sequences`` rows of ``sequence_length`` tokens from a corpus, on CPU."""

    def __init__(self, corpus: TokenizedCorpus, *, sequences: int, sequence_length: int, seed: int) -> None:
        if sequences < 1:
            raise ConfigError(f"a batch needs at least 1 sequence, not {sequences}")
        if corpus.num_pieces == 0:
            raise DataError("the corpus is empty, so there is nothing to make batches of")
        lengths = corpus.lengths()
        longest = int(lengths.max())
        if longest > sequence_length:
            raise ConfigError(
                f"the corpus was tokenised into pieces of up to {longest} tokens, more than "
                f"sequence_length={sequence_length}; tokenise it again with this length"
            )
        self.corpus = corpus
        self.sequences = sequences
        self.sequence_length = sequence_length
        self.seed = seed
        self._rows = pack(lengths, sequence_length)
        self._order = (-1, torch.arange(0))
        corpus.release()

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
            numbers = range(first, min(first + self.sequences, self.num_rows))
            yield self._collate([self._rows[number] for number in numbers])

    def _row_at(self, place: int) -> list[int]:
        epoch, index = divmod(place, self.num_rows)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._order = (epoch, torch.randperm(self.num_rows, generator=generator, dtype=torch.int32))
        return self._rows[int(self._order[1][index])]

    def _collate(self, rows: list[list[int]]) -> TokenBatch:
        shape = (len(rows), self.sequence_length)
        tokens = torch.zeros(shape, dtype=torch.int64)
        segments = torch.full(shape, -1, dtype=torch.int64)
        positions = torch.zeros(shape, dtype=torch.int64)
        supervised = torch.zeros(shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            column = 0
            for segment, piece in enumerate(row):
                found, flags = self.corpus.piece(piece)
                place = (number, slice(column, column + len(found)))
                tokens[place] = found.long()
                segments[place] = segment
                positions[place] = torch.arange(len(found))
                supervised[place] = flags
                column += len(found)
        self.corpus.release()
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


@dataclass(frozen=True, eq=False)
class Packing:
    """Which pieces share a row: int32 ``[pieces]``, row after row, and where each row stops, ``[rows]``."""

    pieces: NDArray[np.int32]
    ends: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> list[int]:
        start = int(self.ends[row - 1]) if row else 0
        found: list[int] = self.pieces[start : int(self.ends[row])].tolist()
        return found


def pack(lengths: Tensor, capacity: int) -> Packing:
    """Group pieces into rows of at most ``capacity`` tokens: longest first, each where it fits best.

    Of more than ``_WINDOW`` pieces so many are packed at a time, so that the work's memory is bounded.
    """
    sizes = lengths.numpy()
    pieces = np.empty(len(sizes), dtype=np.int32)
    ends: list[NDArray[np.int32]] = []
    for start in range(0, len(sizes), _WINDOW):
        window = slice(start, start + _WINDOW)
        order, rows = _packed(sizes[window], capacity)
        pieces[window] = start + order[np.argsort(rows, kind="stable")]
        ends.append((start + np.cumsum(np.bincount(rows))).astype(np.int32))
    return Packing(pieces, np.concatenate(ends))


def _packed(sizes: NDArray[np.int32], capacity: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """The pieces in the order in which they are packed, and the row of each."""
    order = np.argsort(-sizes, kind="stable")
    rows = np.empty(len(sizes), dtype=np.int32)
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    count = 0
    for place, size in enumerate(sizes[order].tolist()):
        found = bisect.bisect_left(free, (size, -1))
        if found < len(free):
            room, row = free.pop(found)
        else:
            room, row = capacity, count
            count += 1
        rows[place] = row
        if room > size:
            bisect.insort(free, (room - size, row))
    return order, rows
