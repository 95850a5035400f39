"""One file of a cache: the stored rows of some pieces, an index to them, and a checksum of each piece.

Written beside its place and moved there whole, so what has the name of a shard is complete. What is read
is checked: the index when a shard is opened, a piece when it is read.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepspec.errors import DataError
from deepspec.paths import written_whole

_INDEX = ("keys", "tapped_ends", "last_ends", "checksums")


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Codes ``[n, ..., C]`` and scales ``[n, ..., S]`` of n rows, see :mod:`deepspec.features.codec`."""

    codes: Tensor
    scales: Tensor | None

    def cut(self, start: int, stop: int) -> StoredRows:
        """Some of the rows."""
        return StoredRows(self.codes[start:stop], None if self.scales is None else self.scales[start:stop])

    def checksum(self, before: int = 0) -> int:
        """CRC-32 of the bytes, going on from another's."""
        for part in (self.codes, self.scales):
            if part is not None and part.numel():
                before = zlib.crc32(part.contiguous().view(torch.uint8).numpy().data, before)
        return before


@dataclass(frozen=True, eq=False)
class StoredPiece:
    """A piece's rows: ``tapped [n, K, ...]`` of its first n positions, ``last [m, ...]`` of graded ones."""

    tapped: StoredRows
    last: StoredRows

    def checksum(self) -> int:
        return self.last.checksum(self.tapped.checksum())


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the pieces of a shard lie in it, int64 ``[P]`` each: keys, ends of their rows, checksums."""

    path: Path
    keys: Tensor
    tapped_ends: Tensor
    last_ends: Tensor
    checksums: Tensor


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies in a cache."""
    return folder / f"shard-{number:06d}.safetensors"


def write_shard(path: Path, keys: Tensor, tapped: Sequence[StoredRows], last: Sequence[StoredRows]) -> None:
    """Write the pieces with these keys ``[P]``; raises OSError or SafetensorError and leaves nothing then."""
    sums = [StoredPiece(*rows).checksum() for rows in zip(tapped, last, strict=True)]
    tensors = {"keys": keys, "checksums": torch.tensor(sums, dtype=torch.int64)}
    for name, parts in (("tapped", tapped), ("last", last)):
        tensors[f"{name}_ends"] = torch.tensor([len(part.codes) for part in parts]).cumsum(0)
        tensors[name] = torch.cat([part.codes for part in parts])
        scales = [part.scales for part in parts if part.scales is not None]
        if scales:
            tensors[f"{name}_scales"] = torch.cat(scales)
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"index": _digest([tensors[name] for name in _INDEX])})


def read_index(path: Path) -> ShardIndex:
    """A shard's index; raises DataError naming the shard when it is absent, cut off or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            index = [file.get_tensor(name) for name in _INDEX]
            stated = (file.metadata() or {}).get("index")
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from error
    if stated != _digest(index):
        raise damaged(path, "its index is not as it was written")
    return ShardIndex(path, *index)


def read_piece(file: Any, index: ShardIndex, number: int) -> StoredPiece:
    """Piece ``number`` of an opened shard; raises DataError naming the shard when it is damaged."""
    try:
        piece = StoredPiece(
            _rows(file, "tapped", index.tapped_ends, number), _rows(file, "last", index.last_ends, number)
        )
    except (OSError, SafetensorError) as error:
        raise damaged(index.path, str(error)) from error
    if piece.checksum() != int(index.checksums[number]):
        raise damaged(index.path, f"the checksum of piece {number} is another")
    return piece


def damaged(path: Path, reason: str) -> DataError:
    """The error that names a shard and says how to mend it."""
    return DataError(
        f"{path} is damaged ({' '.join(reason.split())}); remove it and run `deepspec features` again, which "
        "writes what is missing"
    )


def _rows(file: Any, name: str, ends: Tensor, number: int) -> StoredRows:
    start, stop = int(ends[number - 1]) if number else 0, int(ends[number])
    scales = f"{name}_scales"
    return StoredRows(
        file.get_slice(name)[start:stop],
        file.get_slice(scales)[start:stop] if scales in file.keys() else None,  # noqa: SIM118
    )


def _digest(index: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in index:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
