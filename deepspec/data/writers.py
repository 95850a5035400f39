"""Writes examples to JSONL or Parquet as they come, and remembers on disk which prompts came before."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from deepspec.data.examples import ChatExample, Example, as_record
from deepspec.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

#: About the text of a Parquet file's row group.
_GROUP_CHARACTERS = 4_000_000


class ExampleWriter(ABC):
    """A file that examples are written to, one after the other."""

    @abstractmethod
    def write(self, example: Example) -> None:
        """Add an example; raises DataError when the format does not hold it."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


class JsonlWriter(ExampleWriter):
    """One object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, example: Example) -> None:
        self._file.write(json.dumps(as_record(example), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class ParquetWriter(ExampleWriter):
    """The columns of all forms, null where a row has another form."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._schema = _schema()
        self._file = parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, example: Example) -> None:
        record = as_record(example)
        if isinstance(example, ChatExample) and (example.tools or any(m.extra for m in example.messages)):
            raise DataError(
                f"{example.source}: tools and their calls have no fixed columns, so Parquet does not hold "
                "them; write JSONL (--format jsonl)"
            )
        self._rows.append(record)
        self._characters += sum(len(str(value)) for value in record.values())
        if self._characters >= _GROUP_CHARACTERS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._characters = [], 0


def _schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    columns = [("messages", pa.list_(message)), ("prompt", text), ("response", text), ("text", text)]
    return pa.schema([*columns, ("complete", pa.bool_())])


class SeenPrompts:
    """Which prompts came before, by a hash of their words, in a file of its own that goes on leaving."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store = sqlite3.connect(path, isolation_level=None)
        # The file is of no use after this process, so nothing needs to be safe on disk.
        self._store.execute("PRAGMA journal_mode = OFF")
        self._store.execute("PRAGMA synchronous = OFF")
        self._store.execute("CREATE TABLE seen (prompt BLOB PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> SeenPrompts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()
        self._path.unlink(missing_ok=True)

    def add(self, prompt: bytes) -> bool:
        """Whether the prompt's hash is new; raises OSError when it cannot be kept."""
        try:
            return self._store.execute("INSERT OR IGNORE INTO seen VALUES (?)", (prompt,)).rowcount == 1
        except sqlite3.Error as error:
            raise OSError(str(error)) from error


def prompt_hash(prompt: str) -> bytes:
    """16 bytes; two prompts have the same ones when they differ in blanks alone."""
    return hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=16).digest()
