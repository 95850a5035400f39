"""Which rows of a step a process computes, in which parts, and what all processes come to together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from deepspec.distributed import World
from deepspec.errors import ConfigError
from deepspec.train.anchors import blocks_at, select_rows
from deepspec.train.objective import Graded
from deepspec.types import AnchorBlocks, TokenBatch

if TYPE_CHECKING:
    from deepspec.config import TrainConfig
    from deepspec.data import TokenizedCorpus
    from deepspec.target import Target

#: Pieces of a text that are compared between processes.
_TOLD_PIECES = 256


def check_share(config: TrainConfig, world: World) -> None:
    """Raise ConfigError when a step has not a row for each process."""
    if world.size > config.sequences_per_step:
        raise ConfigError(
            f"train.sequences_per_step is {config.sequences_per_step} for {world.size} processes, which "
            f"share these rows; give at least {world.size}, or start fewer processes"
        )


def told_by(target: Target, corpus: TokenizedCorpus) -> dict[str, object]:
    """What tells other weights, or another text, from those of the other processes."""
    some = range(0, corpus.num_pieces, max(1, corpus.num_pieces // _TOLD_PIECES))
    content = [int((tokens + supervised.int()).sum()) for tokens, supervised in map(corpus.piece, some)]
    return {
        "target fingerprint": target.fingerprint,
        "tokens": corpus.num_tokens,
        "pieces": corpus.num_pieces,
        "sum over some pieces": sum(content),
    }


def own_rows(batch: TokenBatch, world: World) -> TokenBatch:
    """This process's rows of a batch."""
    return _rows(batch, *world.share(len(batch.tokens)))


def own_parts(
    batch: TokenBatch, anchors: AnchorBlocks, num_parts: int, world: World, *, in_step: bool
) -> Iterator[tuple[TokenBatch, AnchorBlocks]]:
    """This process's rows in at most ``num_parts`` parts, without those that have no anchor.

    Args:
        in_step: whether a forward pass is something that all processes do together. Each then has
            ``num_parts`` of them, and a part without an anchor comes with a block that has no label.
    """
    first, last = world.share(len(batch.tokens))
    size = -(-(last - first) // num_parts)
    for number in range(num_parts):
        start = min(first + number * size, last)
        stop = min(start + size, last)
        blocks = select_rows(anchors, start, stop)
        if len(blocks.rows):
            yield _rows(batch, start, stop), blocks
        elif in_step:
            start = min(start, len(batch.tokens) - 1)
            some = _rows(batch, start, max(stop, start + 1))
            yield some, _blank(some, anchors.valid.shape[1])


def with_label(blank: AnchorBlocks) -> AnchorBlocks:
    """A block that has no label, with one: at a weight of nothing it gives every weight the gradient 0."""
    valid = blank.valid.clone()
    valid[:, 0] = True
    return replace(blank, valid=valid)


def sum_gradients_(weights: Iterable[nn.Parameter], world: World) -> None:
    """Replace each gradient by its sum over all processes.

    A weight without a gradient anywhere stays without one, since the optimisers pass it over.
    """
    if world.is_alone:
        return
    trained = [weight for weight in weights if weight.requires_grad]
    counts = world.add_up([float(weight.grad is not None) for weight in trained])
    gradients = []
    for weight, count in zip(trained, counts, strict=True):
        if count:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients.append(weight.grad)
    world.add_up_(gradients)


def sum_graded(graded: Graded | None, world: World, *, num_terms: int, draft_length: int) -> Graded | None:
    """What all processes graded, None when that is no block."""
    if world.is_alone:
        return graded
    sizes = [num_terms, draft_length, draft_length]
    own = graded or Graded(*(torch.zeros(size) for size in sizes))
    flat = torch.cat([part.double() for part in (own.term_sums, own.survival, own.blocks)])
    total = Graded(*torch.tensor(world.add_up(flat.tolist()), dtype=torch.float64).split(sizes))
    return total if total.blocks.any() else None


def _rows(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    fields = (batch.tokens, batch.segments, batch.positions, batch.supervised)
    return TokenBatch(*(field[start:stop] for field in fields))


def _blank(batch: TokenBatch, draft_length: int) -> AnchorBlocks:
    block = blocks_at(batch, torch.tensor([0]), torch.tensor([1]), draft_length=draft_length)
    return replace(block, valid=torch.zeros_like(block.valid))
