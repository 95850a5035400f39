"""Where rows come from: files, folders and globs, or a data set by its Hugging Face name.

``NAME[:SPLIT]`` is a data set unless something here has that name; the split is ``train`` by default and may
be a slice, as in ``train[:1000]``. The ``datasets`` library keeps it in its own cache, from which it is read
row by row.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.rows import Row, example_files, read_rows, without_nulls
from deepspec.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<split>[\w.\[\]:%+-]+))?")
_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
_REASON_CHARACTERS = 160


def read_sources(sources: Sequence[str], *, subset: str | None = None) -> Iterator[Row]:
    """The rows of every source, in order; ``subset`` is the data sets' configuration.

    Raises DataError for what cannot be found or read.
    """
    for source in sources:
        name = _data_set(source)
        if name is not None:
            yield from _data_set_rows(*name, subset=subset)
        else:
            for file in example_files(source):
                yield from read_rows(file)


def file_sources(sources: Sequence[str]) -> list[str]:
    """Those that are files, folders and globs."""
    return [source for source in sources if _data_set(source) is None]


def source_fingerprint(sources: Sequence[str], *, subset: str | None = None) -> str:
    """A hash of what :func:`read_sources` reads: of files the bytes, in order, wherever they lie.

    Of a data set the name, split, subset, number of rows, and the first and last of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        name = _data_set(source)
        if name is not None:
            rows = _load(*name, subset=subset)
            ends = [rows[place] for place in (0, -1)] if len(rows) else []
            digest.update(json.dumps([*name, subset, len(rows), ends], default=str).encode())
            continue
        for file in example_files(source):
            try:
                with file.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "blake2b").digest())
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def _data_set(source: str) -> tuple[str, str] | None:
    """Name and split, or None when ``source`` is a path."""
    if Path(source).expanduser().exists() or source.endswith(_FILE_SUFFIXES) or source.startswith((".", "/")):
        return None
    found = _NAME.fullmatch(source)
    return None if found is None else (found["name"], found["split"] or "train")


def _load(name: str, split: str, *, subset: str | None) -> Dataset:
    import datasets

    try:
        with quiet_retries():
            return datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(_why_not(name, split, subset, error)) from error


def _data_set_rows(name: str, split: str, *, subset: str | None) -> Iterator[Row]:
    rows = _load(name, split, subset=subset)
    where = ":".join(part for part in (name, subset, split) if part)
    for number, row in enumerate(rows, start=1):
        yield f"{where}:{number}", without_nulls(row)


def _why_not(name: str, split: str, subset: str | None, error: Exception) -> str:
    which = f"data set {name!r}" + (f", subset {subset!r}" if subset else "") + f", split {split!r}"
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text[:_REASON_CHARACTERS]}"
    if "Config name is missing" in text:
        return f"{which}: it has several subsets; give one with --subset NAME ({reason})"
    is_offline = any(os.environ.get(key) == "1" for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if isinstance(error, ConnectionError) or (is_offline and isinstance(error, FileNotFoundError)):
        why = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set" if is_offline else "the hub cannot be reached"
        return (
            f"{which}: no file or folder has this name here, the data set is not in the local cache, and "
            f"{why}; give a JSONL, JSON or Parquet file"
        )
    return f"{which} cannot be had ({reason}); nor has a file or folder this name here"


@contextmanager
def quiet_retries() -> Iterator[None]:
    """The hub's client announces each retry; the one error at the end says it all."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)
