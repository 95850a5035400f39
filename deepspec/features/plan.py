"""What a cache of features holds of a text: which rows of each piece, in which shard, in how many bytes.

A drafter reads features before its anchor, and the loss reads ``last_hidden`` from there to the last label
but one. An anchor and the label after it are supervised, so all that any block may read of a piece is known
beforehand; nothing else is stored. A piece is found again by a hash of its tokens and of where the loss
reads, so neither the split, the seed nor the packing into rows matters to a cache.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepspec.data import TokenizedCorpus
from deepspec.features.codec import row_bytes

#: Of a shard's rows; a piece is never divided.
SHARD_BYTES = 2**28
#: Beside its rows: key, two ends and a checksum, int64 each.
_PIECE_BYTES = 32
#: Of a shard's header, about.
_HEADER_BYTES = 1024
#: Pieces of a text after which what was read of it is given back.
_RELEASE_PIECES = 256


@dataclass(frozen=True)
class Shape:
    """What is stored of a position: K tapped layers and the last one, of width D, in so many bits.

    With ``last_before_anchors`` a drafter reads ``last_hidden``, which is then kept where ``tapped`` is.
    """

    num_layers: int
    hidden_size: int
    bits: int
    last_before_anchors: bool

    @property
    def row_bytes(self) -> int:
        """Of one layer at one position."""
        return row_bytes(self.bits, self.hidden_size)

    @property
    def bytes_uncompressed(self) -> int:
        """(K + 1) * D * 2, of one position with everything in bfloat16."""
        return (self.num_layers + 1) * self.hidden_size * 2


def graded_positions(supervised: Tensor) -> Tensor:
    """Bool ``[L]``: where the loss may read a piece's ``last_hidden``, from ``supervised [L]``."""
    graded = torch.zeros_like(supervised)
    graded[1:-1] = supervised[1:-1] & supervised[2:]
    return graded


def num_context(graded: Tensor) -> int:
    """How many first positions of a piece a drafter may read: those before its last possible anchor."""
    return int(graded.nonzero()[-1]) if bool(graded.any()) else 0


def kept_last(graded: Tensor, *, before_anchors: bool) -> Tensor:
    """int64, the positions of a piece at which ``last_hidden`` is stored, ascending."""
    kept = graded.clone()
    if before_anchors:
        kept[: num_context(graded)] = True
    return kept.nonzero()[:, 0]


def piece_key(tokens: Tensor, graded: Tensor) -> int:
    """What a piece is found by: int64 hash of its tokens ``[L]`` and of :func:`graded_positions`."""
    digest = hashlib.blake2b(tokens.to(torch.int32).numpy().tobytes(), digest_size=8)
    digest.update(graded.numpy().tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


@dataclass(frozen=True, eq=False)
class Pieces:
    """The distinct pieces of a text, in the order of their keys, so that each order of it gives the same.

    Attributes:
        numbers: int64 ``[P]``, of the pieces in the corpus.
        keys: int64 ``[P]``.
        context, graded: int64 ``[P]``, how many positions a drafter and the loss may read.
        num_tokens: of all pieces, repeated ones counted each time.
    """

    numbers: Tensor
    keys: Tensor
    context: Tensor
    graded: Tensor
    num_tokens: int

    @classmethod
    def of(cls, corpus: TokenizedCorpus) -> Pieces:
        """Those of ``corpus``."""
        found: dict[int, tuple[int, int, int]] = {}
        for number in range(corpus.num_pieces):
            tokens, supervised = corpus.piece(number)
            graded = graded_positions(supervised)
            found.setdefault(piece_key(tokens, graded), (number, num_context(graded), int(graded.sum())))
            if number % _RELEASE_PIECES == 0:
                corpus.release()
        keys, order = torch.tensor(list(found), dtype=torch.int64).sort()
        numbers, context, graded_counts = torch.tensor(list(found.values()), dtype=torch.int64)[order].T
        return cls(numbers, keys, context, graded_counts, corpus.num_tokens)

    @cached_property
    def digest(self) -> str:
        """Of the keys: what text this is, in whatever order."""
        return hashlib.sha256(self.keys.numpy().tobytes()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """Pieces ``start`` to ``stop`` of :class:`Pieces` in one file of about ``num_bytes``."""

    number: int
    start: int
    stop: int
    num_bytes: int


def plan_shards(pieces: Pieces, shape: Shape, shard_bytes: int = SHARD_BYTES) -> list[ShardPlan]:
    """Consecutive pieces to a shard, as many as fit into ``shard_bytes`` (at least one)."""
    # The last possible anchor is the last position that is graded.
    last = (pieces.context + 1) * (pieces.graded > 0) if shape.last_before_anchors else pieces.graded
    sizes = (pieces.context * shape.num_layers + last) * shape.row_bytes + _PIECE_BYTES
    shards: list[ShardPlan] = []
    start, filled = 0, 0
    for number, size in enumerate(sizes.tolist()):
        if number > start and filled + size > shard_bytes:
            shards.append(ShardPlan(len(shards), start, number, filled + _HEADER_BYTES))
            start, filled = number, 0
        filled += size
    return [*shards, ShardPlan(len(shards), start, len(sizes), filled + _HEADER_BYTES)]
