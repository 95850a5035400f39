"""Drives a drafter by hand as an engine would, at its harshest, to be compared with its training pass."""

from __future__ import annotations

import random
from copy import copy

import torch
from torch import Tensor

from deepspec.interfaces import Drafter
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, Span, TokenBatch
from tests.tiny_models import VOCAB

CPU = torch.device("cpu")


def packed_batch() -> TokenBatch:
    """Two rows of 24 tokens: one document; two documents and padding."""
    tokens = torch.randint(0, VOCAB - 1, (2, 24), generator=torch.Generator().manual_seed(2))
    segments = torch.tensor([[0] * 24, [0] * 10 + [1] * 12 + [-1] * 2])
    positions = torch.tensor([list(range(24)), [*range(10), *range(12), 0, 0]])
    return TokenBatch(tokens, segments, positions, segments >= 0)


def blocks(batch: TokenBatch, rows: list[int], columns: list[int], draft_length: int) -> AnchorBlocks:
    """Anchors with random labels (no drafter may read them from the batch)."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, VOCAB - 1, (len(rows), draft_length), generator=generator)
    at = torch.tensor(rows), torch.tensor(columns)
    previous = torch.cat([batch.tokens[at][:, None], labels[:, :-1]], dim=1)
    return AnchorBlocks(*at, labels, previous, torch.ones_like(labels, dtype=torch.bool))


def stepped(
    drafter: Drafter,
    batch: TokenBatch,
    features: Features,
    anchors: AnchorBlocks,
    *,
    slots: list[int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Hidden states ``[N, G, H]`` of all anchors drafting together, each a request of its own.

    Their contexts come in chunks of random sizes, a random few requests at a time; between chunks
    everybody drafts tokens that are then refused, and a request starts again from the front as after a
    preemption.
    """
    return _Requests(drafter, batch, features, anchors, slots).run(random.Random(seed))


class _Requests:
    def __init__(
        self,
        drafter: Drafter,
        batch: TokenBatch,
        features: Features,
        anchors: AnchorBlocks,
        slots: list[int] | None,
    ) -> None:
        self.drafter, self.batch, self.features, self.anchors = copy(drafter), batch, features, anchors
        self.rows, self.columns = anchors.rows.tolist(), anchors.columns.tolist()
        self.ends = batch.positions[anchors.rows, anchors.columns].tolist()
        self.slots = slots or list(range(len(self.rows)))
        self.done = [0] * len(self.rows)
        self.drafter.allocate(max(self.slots) + 1, max(self.ends), torch.float64, CPU)

    def run(self, chance: random.Random) -> Tensor:
        preempted = [chance.randrange(len(self.rows))]
        while self.done != self.ends:
            left = [n for n, end in enumerate(self.ends) if self.done[n] < end]
            some = sorted(chance.sample(left, chance.randint(1, len(left))))
            self._extend([(n, chance.randint(1, self.ends[n] - self.done[n])) for n in some])
            if preempted and self.done[preempted[0]] == self.ends[preempted[0]]:
                self.done[preempted.pop()] = 0
            begun = [n for n, done in enumerate(self.done) if done > 0]
            if begun:
                self._draft(begun, torch.randint(0, VOCAB - 1, (len(begun), self.anchors.labels.shape[1])))
        return self._draft(list(range(len(self.rows))), self.anchors.previous)

    def _extend(self, chunks: list[tuple[int, int]]) -> None:
        spans = tuple(Span(self.slots[n], self.done[n], count) for n, count in chunks)
        row = torch.tensor([self.rows[n] for n, count in chunks for _ in range(count)])
        positions = torch.tensor([p for span in spans for p in range(span.start, span.start + span.length)])
        first = torch.tensor([self.columns[n] - self.ends[n] for n, count in chunks for _ in range(count)])
        column = first + positions
        tokens = self.batch.tokens
        self.drafter.extend(
            Extension(
                slots=torch.tensor([span.slot for span in spans]),
                spans=spans,
                rows=torch.tensor([span.slot for span in spans for _ in range(span.length)]),
                positions=positions,
                tokens=tokens[row, column],
                next_tokens=tokens[row, column + 1],
                features=Features(self.features.tapped[row, column], self.features.last_hidden[row, column]),
            )
        )
        for n, count in chunks:
            self.done[n] += count

    def _draft(self, some: list[int], previous: Tensor) -> Tensor:
        slots, positions = [self.slots[n] for n in some], [self.done[n] for n in some]
        at = [self.columns[n] - self.ends[n] + self.done[n] for n in some]
        start = Anchors(
            slots=torch.tensor(slots),
            tokens=self.batch.tokens[[self.rows[n] for n in some], at],
            positions=torch.tensor(positions),
            spans=tuple(Span(slot, position, 1) for slot, position in zip(slots, positions, strict=True)),
            num_draft=previous.shape[1],
        )
        state = self.drafter.begin(start)
        columns = [start.tokens, *previous.unbind(1)[1:]]
        steps = [self.drafter.step(state, k, column) for k, column in enumerate(columns)]
        return torch.stack(steps, dim=1)
