"""A safetensors file read through memory mapping, and one written piece by piece.

What is read of a mapped file lies in the system's page cache; :meth:`MappedFile.release` takes it out of the
process's own memory, so that memory does not grow with the file.
"""

from __future__ import annotations

import json
import mmap
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from deepspec.paths import written_whole

_DTYPES: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "BOOL": np.dtype("?")}
#: Before the tensors: the header's length in 8 bytes and the header, filled up with blanks.
_START = 4096
_LENGTH_BYTES = 8


class MappedFile:
    """The tensors of a safetensors file of 32 and 64 bit integers and booleans, none of them read yet.

    Raises OSError or SafetensorError when it cannot be read, is cut off or is no such file.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:  # which looks whether it is whole
            list(file.keys())
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
            header = json.loads(handle.read(length))
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        header.pop("__metadata__", None)
        self.tensors = {name: self._tensor(entry, _LENGTH_BYTES + length) for name, entry in header.items()}

    def _tensor(self, entry: dict[str, Any], start: int) -> Tensor:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            return torch.empty(entry["shape"], device="meta")
        first, stop = (start + offset for offset in entry["data_offsets"])
        count = (stop - first) // dtype.itemsize
        flat = np.frombuffer(self._map, dtype=dtype, count=count, offset=first)
        return torch.from_numpy(flat if flat.flags.aligned else flat.copy()).reshape(entry["shape"])

    def release(self) -> None:
        """Give back the memory that what was read takes; where the system has no call for it, keep it."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def write_pieces(path: Path, pieces: Iterable[tuple[Tensor, Tensor, int]]) -> None:
    """Write tokens, supervised and document of each piece as they come; raises OSError.

    The file has ``tokens`` (int32) and ``supervised`` (bool), flat, and ``ends`` and ``documents`` (int64).
    Behind an odd number of tokens there is one more, so that the integers that follow are aligned.
    """
    with written_whole(path) as partial, partial.open("wb") as file, _Spools(path.parent) as spools:
        file.seek(_START)
        total = 0
        for tokens, supervised, document in pieces:
            total += len(tokens)
            file.write(tokens.numpy().tobytes())
            spools.add(supervised, total, document)
        if total % 2:
            file.write(bytes(4))
            spools.supervised.write(bytes(1))
        header, offset = {}, 0
        sizes = {"tokens": 4 * (total + total % 2), **spools.sizes()}
        for (name, size), dtype in zip(sizes.items(), ("I32", "I64", "I64", "BOOL"), strict=True):
            shape = [size // _DTYPES[dtype].itemsize]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        spools.copy_to(file)
        file.seek(0)
        file.write((_START - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little"))
        file.write(json.dumps(header).encode().ljust(_START - _LENGTH_BYTES))


class _Spools:
    """Files without a name for what comes after the tokens; a process that is killed leaves none."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, IO[bytes]] = {
            name: tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed together
            for name in ("ends", "documents", "supervised")
        }

    def __enter__(self) -> _Spools:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    @property
    def supervised(self) -> IO[bytes]:
        return self._files["supervised"]

    def add(self, supervised: Tensor, end: int, document: int) -> None:
        self.supervised.write(supervised.numpy().tobytes())
        for name, number in (("ends", end), ("documents", document)):
            self._files[name].write(number.to_bytes(8, "little"))

    def sizes(self) -> dict[str, int]:
        return {name: file.tell() for name, file in self._files.items()}

    def copy_to(self, file: IO[bytes]) -> None:
        for spool in self._files.values():
            spool.seek(0)
            shutil.copyfileobj(spool, file, 1 << 20)
