"""Where drafting is practised: anchor positions sampled from a training batch (DFlash, 2602.06036).

A block starts from its anchor, a token the target would have settled, and its labels are the next G
tokens. Sampling depends on (seed, step) alone, so that a resumed run sees the same blocks.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from deepspec.types import AnchorBlocks, TokenBatch


def sample_anchors(
    batch: TokenBatch, num_anchors: int, *, draft_length: int, seed: int, step: int
) -> AnchorBlocks:
    """At most ``num_anchors`` distinct anchors a row, shared among its documents by their length.

    A document's candidates are drawn uniformly, and every document gets one anchor while there are enough
    for all. Candidates are positions that are supervised, as is the next token of the same document; the
    first token of a document is none, since in decoding something always precedes the anchor.

    Args:
        batch: on CPU.
        draft_length: G.

    Returns:
        Blocks sorted by row and column, N = 0 when no position qualifies.
    """
    rows, columns = _candidates(batch).nonzero(as_tuple=True)
    generator = torch.Generator().manual_seed(_mixed_seed(seed, step))
    order = torch.randperm(len(rows), generator=generator)
    documents = rows * (int(batch.segments.max()) + 1) + batch.segments[rows, columns]
    ranks, counts = _ranks(documents[order])
    # Candidate number r of a document with c of them comes at share r / c of its row's budget.
    order = order[(ranks.double() / counts.double()).argsort(stable=True)]
    order = order[rows[order].argsort(stable=True)]
    kept = order[_ranks(rows[order])[0] < num_anchors].sort().values
    return blocks_at(batch, rows[kept], columns[kept], draft_length=draft_length)


def blocks_at(batch: TokenBatch, rows: Tensor, columns: Tensor, *, draft_length: int) -> AnchorBlocks:
    """The blocks of given anchors, int64 ``[N]`` each, with ``draft_length`` labels after each anchor."""
    length = batch.tokens.shape[1]
    reach = columns[:, None] + torch.arange(draft_length + 1, device=columns.device)
    inside = reach.clamp(max=length - 1)
    tokens = batch.tokens[rows[:, None], inside]
    same = batch.segments[rows[:, None], inside] == batch.segments[rows, columns][:, None]
    usable = (reach < length) & same & batch.supervised[rows[:, None], inside]
    valid = usable[:, 1:].cummin(dim=1).values
    labels = torch.where(valid, tokens[:, 1:], 0)
    previous = torch.cat([tokens[:, :1], labels[:, :-1]], dim=1)
    return AnchorBlocks(rows=rows, columns=columns, labels=labels, previous=previous, valid=valid)


def select_rows(blocks: AnchorBlocks, start: int, stop: int) -> AnchorBlocks:
    """The blocks whose row lies in ``[start, stop)``, with rows counted from ``start``."""
    low, high = torch.searchsorted(blocks.rows, torch.tensor([start, stop])).tolist()
    parts = (blocks.columns, blocks.labels, blocks.previous, blocks.valid)
    return AnchorBlocks(blocks.rows[low:high] - start, *(part[low:high] for part in parts))


def move(blocks: AnchorBlocks, device: torch.device) -> AnchorBlocks:
    """The same blocks on ``device``."""
    parts = (blocks.rows, blocks.columns, blocks.labels, blocks.previous, blocks.valid)
    return AnchorBlocks(*(part.to(device) for part in parts))


def _candidates(batch: TokenBatch) -> Tensor:
    """Bool ``[S, L]``: whether a block may start here."""
    starts = torch.zeros_like(batch.supervised)
    same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, :-1] >= 0)
    starts[:, :-1] = same & batch.supervised[:, :-1] & batch.supervised[:, 1:]
    return starts & (batch.positions > 0)


def _ranks(groups: Tensor) -> tuple[Tensor, Tensor]:
    """For each element of int64 ``[M]``: how many equal ones come before it, and how many there are."""
    _, number, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    order = number.argsort(stable=True)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - first[number[order]]
    return ranks, counts[number]


def _mixed_seed(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"anchors {seed} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
