"""Rows of files, one at a time: JSONL, JSON (a list of objects) and Parquet; and which files a path names.

A path is a file, a folder (its ``*.jsonl`` and ``*.parquet``, at any depth) or a glob. A row is an object
with its ``file:number``, that of its line in JSONL. Files are never read whole, so memory does not grow with
them. Whatever cannot be read raises :class:`~deepspec.errors.DataError`.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.data.examples import FORMS, Example, kind_of, parse_example
from deepspec.errors import DataError

if TYPE_CHECKING:
    from io import TextIOBase

#: A row and where it is from.
Row = tuple[str, dict[str, object]]

#: Files of a folder that are read.
FOLDER_SUFFIXES = (".jsonl", ".parquet")
_GLOB_CHARACTERS = frozenset("*?[")
_BLANK = re.compile(r"[ \t\r\n]*")
_CHUNK_CHARACTERS = 1 << 18
_LARGEST_ITEM_CHARACTERS = 1 << 26
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


def example_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that ``paths`` name, each once; raises DataError for a path that names none."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no data was given; name a JSONL, JSON or Parquet file, a folder of them, or a glob")
    return list(dict.fromkeys(file for path in given for file in _expand(str(path))))


@dataclass(frozen=True)
class ExampleFiles:
    """The examples of some files, read anew each time that they are gone through."""

    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[Example]:
        """Each example, in the order of the files; raises DataError at the first that is none."""
        return (parse_example(row, source) for file in self.files for source, row in read_rows(file))


def read_examples(paths: str | Path | Sequence[str | Path]) -> list[Example]:
    """All examples of files, folders and globs, in the order given, a folder's files by name."""
    return list(ExampleFiles(tuple(example_files(paths))))


def read_rows(file: Path) -> Iterator[Row]:
    """The objects of a file, of the kind that its name ends in; ``.json`` may hold lines as well."""
    readers = {".parquet": _parquet_rows, ".json": _json_rows}
    is_empty = True
    for row in readers.get(file.suffix, _jsonl_rows)(file):
        is_empty = False
        yield row
    if is_empty:
        raise DataError(f"{file}: the file is empty; each row is {FORMS}")


def without_nulls(value: Any) -> Any:
    """``value`` without keys that are null: a table's rows all have the same keys."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _expand(path: str) -> list[Path]:
    here = Path(path).expanduser()
    if here.is_dir():
        found = sorted(file for file in here.rglob("*") if file.suffix in FOLDER_SUFFIXES and file.is_file())
        if not found:
            raise DataError(f"{path}: the folder holds no .jsonl or .parquet file; each row is {FORMS}")
        return found
    if here.exists():
        return [here]
    if _GLOB_CHARACTERS.isdisjoint(path):
        raise DataError(f"{path}: no such file or folder")
    # Path.glob refuses absolute patterns.
    matches = [Path(match) for match in sorted(glob.glob(str(here), recursive=True))]  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(f"{path}: the glob matches no file (in quotes, ** also enters folders)")
    return files


def _jsonl_rows(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if text.strip():
            source = f"{file}:{number}"
            yield source, _parse_line(text, source)


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as handle:
            yield from handle
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error


def _parse_line(line: bytes, source: str) -> dict[str, object]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{source}: not usable JSON: nested too deeply") from error
    return _as_object(record, source)


def _as_object(record: object, source: str) -> dict[str, object]:
    if not isinstance(record, dict):
        raise DataError(f"{source}: a row is one object, {FORMS}; this one is {kind_of(record)}")
    return record


def _json_rows(file: Path) -> Iterator[Row]:
    """A list's objects, read by and by; a file that does not begin with ``[`` holds lines."""
    try:
        with file.open(encoding="utf-8-sig") as handle:
            while (head := handle.read(_CHUNK_CHARACTERS)).isspace():
                pass
            if head.lstrip().startswith("["):
                yield from _list_items(head, handle, file)
                return
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error.reason}") from error
    yield from _jsonl_rows(file)


def _list_items(text: str, handle: TextIOBase, file: Path) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    place, number = text.index("[") + 1, 0
    while True:
        place = _end_of(_BLANK, text, place)
        if text.startswith("]", place):
            return
        source = f"{file}:{number + 1}"
        try:
            if number:
                if not text.startswith(",", place):
                    raise json.JSONDecodeError("a comma or ] is missing", text, place)
                place_of_item = _end_of(_BLANK, text, place + 1)
            else:
                place_of_item = place
            record, after = decoder.raw_decode(text, place_of_item)
        except json.JSONDecodeError as error:
            size = len(text) - place  # what is there may be cut off, or no JSON at all
            more = handle.read(max(_CHUNK_CHARACTERS, size)) if size < _LARGEST_ITEM_CHARACTERS else ""
            if not more:
                raise DataError(f"{source}: not JSON: {error.msg}") from error
            text, place = text[place:] + more, 0
            continue
        except RecursionError as error:
            raise DataError(f"{source}: not usable JSON: nested too deeply") from error
        number, place = number + 1, after
        yield source, _as_object(record, source)


def _end_of(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", without_nulls(row)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{file}: cannot be read as Parquet ({reason})") from error
