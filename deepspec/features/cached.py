"""Features read from a cache on disk, piece by piece; the target's decoder layers are not loaded.

What was stored in as many bits as the target computes in is what it computed, but for the rounding of
matrix products that hold other rows beside (a part in 10^5 in float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepspec.errors import ConfigError, DataError
from deepspec.features.codec import decode
from deepspec.features.plan import Pieces, graded_positions, kept_last, piece_key
from deepspec.features.record import cache_folder, check_agrees, identity_of, read_record
from deepspec.features.shard import (
    StoredPiece,
    StoredRows,
    damaged,
    read_index,
    read_piece,
    shard_path,
)
from deepspec.features.source import FeatureSource, SourceContext
from deepspec.target import Target, load_target
from deepspec.target.head import load_head
from deepspec.types import Features, TokenBatch

if TYPE_CHECKING:
    from deepspec.config import RunConfig
    from deepspec.data import TokenizedCorpus

_OPEN_SHARDS = 256


class CachedFeatures(FeatureSource):
    """What ``deepspec features`` stored in ``features.folder``; nothing is ever written there by reading."""

    name = "cached"

    @classmethod
    def open_target(cls, config: RunConfig, device: str) -> Target:
        """Its head alone, unless ``features.load_target``.

        Raises ConfigError when the cache is of another target, tokenizer or precision.
        """
        folder = cache_folder(config)
        record = read_record(folder)
        if config.features.load_target:
            target = load_target(config.target, device=device)
        else:
            target = load_head(config.target, device=device, fingerprint=record.fingerprint)
        check_agrees(folder, record, identity_of(config, target))
        return target

    def __init__(self, context: SourceContext) -> None:
        super().__init__(context)
        self._folder = cache_folder(context.config)
        self._record = record = read_record(self._folder)
        if not set(context.layers) <= set(record.layers):
            check_agrees(self._folder, record, {"layers": context.layers})
        if context.reads_last_hidden:
            check_agrees(self._folder, record, {"last_before_anchors": True})
        self._columns = [record.layers.index(layer) for layer in context.layers]
        self._check_complete()
        self._shards = [read_index(shard_path(self._folder, n)) for n in range(record.num_shards)]
        keys = torch.cat([shard.keys for shard in self._shards]).numpy()
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._starts = np.cumsum([0, *(len(shard.keys) for shard in self._shards)])
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def check(self, texts: Sequence[TokenizedCorpus]) -> None:
        """Raise DataError when a piece of the texts is not in the cache."""
        pieces = [Pieces.of(text) for text in texts if text.num_pieces]
        missing = sum(int((~np.isin(each.keys.numpy(), self._keys)).sum()) for each in pieces)
        if missing:
            total = sum(len(each.keys) for each in pieces)
            raise DataError(
                f"features.folder {self._folder} holds features of another text: {missing:,} of {total:,} "
                "pieces of this one are not in it; write this one's with `deepspec features` into another "
                "folder"
            )

    def features(self, batch: TokenBatch) -> Features:
        """In the target's float type and on its device; zero where no block reads."""
        rows, length = batch.tokens.shape
        stored: list[StoredPiece] = []
        tapped_places, last_places = [], []
        for row, start, stop in _documents(batch):
            graded = graded_positions(batch.supervised[row, start:stop])
            piece = self._read(piece_key(batch.tokens[row, start:stop], graded))
            stored.append(piece)
            first = row * length + start
            tapped_places.append(torch.arange(first, first + len(piece.tapped.codes)))
            kept = kept_last(graded, before_anchors=self._record.last_before_anchors)
            last_places.append(first + kept)
        tapped = self._decoded([piece.tapped for piece in stored])[:, self._columns].flatten(1)
        last = self._decoded([piece.last for piece in stored])
        return Features(
            _spread(tapped, torch.cat(tapped_places), rows, length),
            _spread(last, torch.cat(last_places), rows, length),
        )

    def _decoded(self, parts: Sequence[StoredRows]) -> Tensor:
        """Rows ``[n, ..., D]`` of all parts, unpacked where the target is."""
        target = self.context.target
        codes = torch.cat([part.codes for part in parts]).to(target.device)
        scales = [part.scales for part in parts if part.scales is not None]
        joined = torch.cat(scales).to(target.device) if scales else None
        return decode(codes, joined, self._record.hidden_size, target.dtype)

    def _read(self, key: int) -> StoredPiece:
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            raise DataError(f"features.folder {self._folder} holds no features of a piece of this text")
        number = int(self._order[place])
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return read_piece(self._open(shard), self._shards[shard], number - int(self._starts[shard]))

    def _open_shard(self, number: int) -> Any:
        path = self._shards[number].path
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise damaged(path, str(error)) from error

    def _check_complete(self) -> None:
        total = self._record.num_shards
        missing = [n for n in range(total) if not shard_path(self._folder, n).is_file()]
        if missing:
            raise ConfigError(
                f"features.folder {self._folder} is not complete: {len(missing):,} of {total:,} shards are "
                f"missing, {shard_path(self._folder, missing[0]).name} first; run `deepspec features` again, "
                "which writes what is missing"
            )


def _documents(batch: TokenBatch) -> Iterator[tuple[int, int, int]]:
    """Row, first column and the column behind the last of every document."""
    for row, segments in enumerate(batch.segments):
        ids, counts = segments.unique_consecutive(return_counts=True)
        stop = 0
        for segment, count in zip(ids.tolist(), counts.tolist(), strict=True):
            start, stop = stop, stop + count
            if segment >= 0:
                yield row, start, stop


def _spread(values: Tensor, places: Tensor, rows: int, length: int) -> Tensor:
    full = values.new_zeros((rows * length, values.shape[-1]))
    full[places.to(values.device)] = values
    return full.unflatten(0, (rows, length))
