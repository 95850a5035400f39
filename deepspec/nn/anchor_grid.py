"""Training anchors arranged by batch row, so that a row's blocks share one attention call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.types import AnchorBlocks, TokenBatch


@dataclass(frozen=True)
class AnchorGrid:
    """N anchors as S rows of ``width`` cells, some empty.

    Attributes:
        anchors: the flat blocks. cell: int64 ``[N]``, each anchor's place in its row.
        num_rows, width: S, and the most anchors of a row.
    """

    anchors: AnchorBlocks
    cell: Tensor
    num_rows: int
    width: int

    @classmethod
    def of(cls, anchors: AnchorBlocks, num_rows: int) -> AnchorGrid:
        """The grid of ``anchors`` over a batch of ``num_rows`` rows."""
        counts = torch.bincount(anchors.rows, minlength=num_rows)
        order = anchors.rows.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        cell = torch.empty_like(order)
        cell[order] = torch.arange(len(order), device=order.device) - starts[anchors.rows[order]]
        return cls(anchors, cell, num_rows, int(counts.max()))

    def scatter(self, values: Tensor) -> Tensor:
        """``[N, ...]`` to ``[S, width, ...]``, zero in empty cells."""
        full = values.new_zeros((self.num_rows, self.width, *values.shape[1:]))
        return full.index_put((self.anchors.rows, self.cell), values)

    def gather(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`scatter`."""
        return values[self.anchors.rows, self.cell]

    def context(self, batch: TokenBatch) -> Tensor:
        """Bool ``[S, width, L]``: the columns before each anchor in its own document."""
        columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        rows = self.anchors.rows
        segment = batch.segments[rows, self.anchors.columns][:, None]
        return self.scatter((columns < self.anchors.columns[:, None]) & (batch.segments[rows] == segment))


def causal(batch: TokenBatch) -> Tensor:
    """Bool ``[S, L, L]``: the columns that each column sees, itself and those before it in its document."""
    same = batch.segments[:, :, None] == batch.segments[:, None, :]
    return same.tril()
