"""What ``deepspec data prepare`` says of the data it made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deepspec.data.lengths import Lengths


@dataclass(frozen=True)
class PartReport:
    """One side of the split; ``tokens`` and ``supervised`` are lengths of its documents.

    ``num_cut`` counts documents longer than a training row.
    """

    file: str
    num_examples: int
    num_documents: int
    num_cut: int
    tokens: Lengths | None
    supervised: Lengths | None


@dataclass(frozen=True)
class DataReport:
    """What came of the rows: how many were read, left out and why, and what each side holds."""

    num_rows: int
    num_duplicates: int
    num_unusable: int
    problems: tuple[str, ...]
    ignored_columns: tuple[str, ...]
    train: PartReport
    held_out: PartReport | None


def report_json(report: DataReport) -> dict[str, Any]:
    """The report as plain values."""
    return {"schema": 1, **asdict(report)}
