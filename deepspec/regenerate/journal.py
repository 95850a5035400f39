"""The file of samples, written so that a process may be killed at any moment.

``FILE`` grows by whole lines, each one sample with its number. Beside it lie ``FILE.settings.json``, how and
of what it is made, and ``FILE.left-out``, a line for each sample that gave no text. On opening, a last line
that was torn is cut, and the numbers found are those done. A lock keeps a second process out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from deepspec.data.examples import PROVENANCE
from deepspec.errors import ConfigError, DataError
from deepspec.paths import sync, written_whole
from deepspec.regenerate.numbers import NumberSet
from deepspec.resources import writing
from deepspec.runs import write_json

FORMAT = 1
#: What is lost at most when the machine, rather than the process, stops.
_SYNC_SECONDS = 5.0
_BLOCK = 1 << 16


class Journal:
    """An open file of samples.

    Args:
        path: where it lies. identity: what must be the same for it to be gone on with; nested values.
        details: what is stored beside.

    Raises:
        ConfigError: other settings or another source, another process is at it, or no such file.
        DataError: it holds something else. ResourceError: it cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        self.path = path
        self.done = NumberSet()
        self._settings = path.with_name(f"{path.name}.settings.json")
        self._left_out = path.with_name(f"{path.name}.left-out")
        identity = json.loads(json.dumps(identity))  # as it is read again: lists, no tuples
        self._check(identity)
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open(path)
        try:
            self._lock()
            self._check(identity)  # as it is now that nobody else can change it
            with self._writing(self._settings):
                self._write_settings(identity, details)
            self._read()
            with self._writing(self._left_out):
                self._compact()
                self._side = _open(self._left_out)
        except BaseException:
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._writing(self.path):
                self._sync()
                self._remove_empty()
        finally:
            os.close(self._side)
            os.close(self._file)

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Append a sample; raises ResourceError."""
        with self._writing(self.path):
            _append(self._file, row)
            self.done.add(number)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()

    def leave_out(self, number: int, line: Mapping[str, Any]) -> None:
        """Note a sample that gave no text; raises ResourceError."""
        with self._writing(self._left_out):
            _append(self._side, {"number": number, **line})
            if line["kind"] != "failed":
                self.done.add(number)

    def _check(self, identity: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the file, if it holds anything, was made so."""
        try:
            if self.path.is_dir():
                raise ConfigError(f"{self.path} is a folder; give --out a file, as in chats.jsonl")
            if not self.path.exists() or not self.path.stat().st_size:
                return
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read ({error}); choose another --out") from error
        made = self._stored_identity()
        if made is None:
            raise ConfigError(
                f"{self.path} exists, and {self._settings.name}, which would say how it was made, is not "
                "beside it or is damaged; choose another --out"
            )
        before, now = _flat(made), _flat(identity)
        differing = [
            f"{key} {_shown(before.get(key))} instead of {_shown(now.get(key))}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if differing:
            raise ConfigError(
                f"{self.path} was written with other settings: {', '.join(differing)}; give the same to go "
                "on with it, or choose another --out"
            )

    def _stored_identity(self) -> Mapping[str, Any] | None:
        """What the file that is there was made of; None where that cannot be told."""
        try:
            found = json.loads(self._settings.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, dict) else None

    def _write_settings(self, identity: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        if not os.fstat(self._file).st_size and self._stored_identity() != identity:
            self._left_out.unlink(missing_ok=True)
        write_json(self._settings, {"format": FORMAT, "identity": identity, "details": details})
        sync(self.path.parent)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: another process is writing it; wait, or choose another"
            ) from None
        except OSError:  # a file system without locks
            return

    def _read(self) -> None:
        """Cut a torn last line and note the samples that are there."""
        with self._writing(self.path):
            os.ftruncate(self._file, _whole_lines(self._file))
        with self.path.open("rb") as lines:
            for place, line in enumerate(lines, start=1):
                try:
                    number = json.loads(line)[PROVENANCE]["number"]
                    is_new = self.done.add(number)
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{self.path}:{place}: no line of this command; remove it") from error
                if not is_new:
                    raise DataError(f"{self.path}:{place}: sample {number} is there twice; remove one")

    def _compact(self) -> None:
        """Forget which samples failed: they are tried again."""
        if not self._left_out.exists():
            return
        with written_whole(self._left_out) as partial, partial.open("wb") as kept:
            for line in _usable_lines(self._left_out):
                if line["kind"] != "failed" and self.done.add(line["number"]):
                    kept.write(_encoded(line))

    def _sync(self) -> None:
        os.fsync(self._file)
        os.fsync(self._side)
        self._synced = time.monotonic()

    def _remove_empty(self) -> None:
        """Leave nothing where there is nothing to tell."""
        if not os.fstat(self._side).st_size:
            self._left_out.unlink(missing_ok=True)
            if not os.fstat(self._file).st_size:
                self.path.unlink(missing_ok=True)
                self._settings.unlink(missing_ok=True)

    def _writing(self, path: Path) -> AbstractContextManager[None]:
        return writing(path, self._advice)

    def _advice(self) -> str:
        advice = "make room or choose another --out"
        number = len(self.done)
        return f"{advice}; what is done is kept ({number:,}): the same command goes on" if number else advice


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _append(file: int, row: Mapping[str, Any]) -> None:
    """A whole line or nothing of it."""
    line, before = _encoded(row), os.fstat(file).st_size
    written = 0
    try:
        while written < len(line):
            written += os.write(file, line[written:])
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file, before)
        raise


def _encoded(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _whole_lines(file: int) -> int:
    """Where the last whole line ends."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _usable_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # the last one may be torn
                found = json.loads(line)
                if isinstance(found, dict) and {"number", "kind"} <= found.keys():
                    yield found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
