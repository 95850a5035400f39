"""Rounds of real decoding in a Parquet file, one row a request and step; see ``COLUMNS``.

The file's metadata say, as JSON under the key ``deepspec``, what decoded: :class:`TraceHeader`. What lies
past a refused token is in a trace, so it is for measuring, calibrating and replaying, not for deciding live.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepspec.environment import versions
from deepspec.errors import DataError
from deepspec.paths import written_whole
from deepspec.resources import writing
from deepspec.rounds import CalibrationRounds
from deepspec.types import TracedStep
from deepspec.validation import explain

if TYPE_CHECKING:
    from deepspec.strategy import Parts
    from deepspec.target import Target

#: Name, type and meaning of each column.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "task": (pa.string(), "the task whose prompts were decoded"),
    "step": (pa.int64(), "number of the engine's step in the task, from 0"),
    "request_id": (pa.int64(), "the request's number in the task"),
    "traffic_class": (pa.int64(), "as submitted"),
    "position": (pa.int64(), "absolute position of the anchor"),
    "drafted": (pa.int64(), "tokens drafted"),
    "verified": (pa.int64(), "tokens verified"),
    "accepted": (pa.int64(), "tokens accepted"),
    "emitted": (pa.int64(), "tokens that joined the output, the bonus among them"),
    "confidence": (pa.list_(pa.float32()), "logits of the drafted positions; empty when there are none"),
    "chance": (pa.list_(pa.float32()), "sum of min(p, q) at the verified positions given the tokens before"),
    "num_requests": (pa.int64(), "R of the step"),
    "verify_tokens": (pa.int64(), "B of the step, prompt tokens included"),
    "prefill_tokens": (pa.int64(), "how many of them were prompt tokens"),
    "kv_tokens": (pa.int64(), "positions held in the target's KV slots after the step"),
    "draft_ms": (pa.float64(), "wall time of the step's drafting"),
    "verify_ms": (pa.float64(), "of its target forward and verdict"),
    "other_ms": (pa.float64(), "of the rest"),
}
#: Those that a step's record has under the same name.
_OF_STEP = ("verify_tokens", "prefill_tokens", "kv_tokens", "draft_ms", "verify_ms", "other_ms")
_KEY = b"deepspec"
_ROWS_HELD = 8192


class TraceHeader(BaseModel):
    """What decoded, and for what its rounds hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(default=1, alias="schema")
    strategy: str
    verifier: str
    policy: str
    confidence: str
    draft_length: int
    temperature: float
    target: str
    fingerprint: str
    versions: dict[str, str]

    @classmethod
    def of(cls, target: Target, parts: Parts, temperature: float) -> TraceHeader:
        """The header of decoding with these parts."""
        return cls(
            strategy=parts.strategy.name,
            verifier=parts.verifier.name,
            policy=parts.policy.name,
            confidence=parts.head.confidence,
            draft_length=parts.drafter.context.draft_length,
            temperature=temperature,
            target=target.name,
            fingerprint=target.fingerprint,
            versions=versions(),
        )


class TraceWriter:
    """Takes in steps of one task after the other; made by :func:`write_trace`."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._task, self._step = "", 0

    def begin(self, task: str) -> None:
        """The steps that follow are of ``task``."""
        self._task, self._step = task, 0

    def __call__(self, traced: TracedStep) -> None:
        record = traced.record
        of_step = {
            "task": self._task,
            "step": self._step,
            "num_requests": len(record.requests),
            **{name: getattr(record, name) for name in _OF_STEP},
        }
        for i, one in enumerate(record.requests):
            confidence = traced.confidence[i, : one.drafted]
            row = {
                **of_step,
                "request_id": one.request_id,
                "traffic_class": traced.classes[i],
                "position": traced.positions[i],
                "drafted": one.drafted,
                "verified": one.verified,
                "accepted": one.accepted,
                "emitted": one.emitted,
                "confidence": [] if np.isnan(confidence).any() else confidence.tolist(),
                "chance": traced.chances[i, : one.verified].tolist(),
            }
            for name, value in row.items():
                self._columns[name].append(value)
        self._step += 1
        if len(self._columns["task"]) >= _ROWS_HELD:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in since."""
        self._file.write_table(pa.table(self._columns, schema=self._file.schema))
        self._columns = {name: [] for name in COLUMNS}


@contextmanager
def write_trace(path: Path, header: TraceHeader) -> Iterator[TraceWriter]:
    """A writer of steps; the file is there, whole, once the block has ended without an error."""
    metadata = {_KEY: header.model_dump_json(by_alias=True).encode()}
    schema = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()], metadata=metadata)
    with (
        writing(path, lambda: "choose another --trace"),
        written_whole(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd") as file,
    ):
        writer = TraceWriter(file)
        yield writer
        writer.flush()


@dataclass(frozen=True)
class Trace:
    """A trace that was read.

    Attributes:
        header: what decoded.
        columns: those of ``COLUMNS`` with a number or name a row; ``[M]``.
        confidence, chances: float64 ``[M, G]``, NaN where there is none.
    """

    header: TraceHeader
    columns: dict[str, NDArray[Any]]
    confidence: NDArray[np.float64]
    chances: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.confidence)

    def rounds(self, *, soft: bool = False) -> CalibrationRounds:
        """For calibrating: by what was accepted, or with ``soft`` by the chances."""
        if soft:
            return CalibrationRounds.from_chances(self.confidence, self.chances)
        return CalibrationRounds.from_counts(
            self.confidence, self.columns["verified"], self.columns["accepted"]
        )


def read_trace(path: str | Path) -> Trace:
    """A whole trace file; raises DataError in one line when it is none."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise DataError(f"trace {path} cannot be read: {reason}; give a file of `eval --trace`") from error
    stored = (table.schema.metadata or {}).get(_KEY)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if stored is None or missing:
        lacks = "DeepSpec's metadata" if stored is None else f"column {missing[0]!r}"
        raise DataError(f"trace {path} lacks {lacks}; give a file of `eval --trace`")
    try:
        header = TraceHeader.model_validate_json(stored)
    except ValidationError as error:
        raise DataError(explain(error, TraceHeader, f"trace {path}")) from error
    plain = {name: table[name].to_numpy() for name in COLUMNS if name not in ("confidence", "chance")}
    return Trace(
        header,
        plain,
        _padded(table["confidence"], header.draft_length),
        _padded(table["chance"], header.draft_length),
    )


def _padded(column: pa.ChunkedArray, length: int) -> NDArray[np.float64]:
    """Lists of at most ``length`` numbers as rows, NaN behind them."""
    lists = column.combine_chunks()
    counts = np.asarray(pc.list_value_length(lists), dtype=np.int64)
    rows = np.full((len(lists), length), np.nan)
    rows[np.arange(length) < counts[:, None]] = np.asarray(lists.flatten(), dtype=np.float64)
    return rows
