"""Lengths of documents as they go by: their distribution without the documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Lengths of some documents, in tokens; the percentiles are lengths that occur."""

    total: int
    mean: float
    shortest: int
    p50: int
    p90: int
    p99: int
    longest: int


class LengthCounter:
    """Counts documents by their length; its size is that of the number of different lengths."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self._counts[length] += 1

    @property
    def number(self) -> int:
        """How many documents were counted."""
        return self._counts.total()

    def count_above(self, length: int) -> int:
        """How many documents were longer."""
        return sum(count for other, count in self._counts.items() if other > length)

    def lengths(self) -> Lengths | None:
        """The distribution so far, None when there is nothing yet."""
        if not self._counts:
            return None
        number = self.number
        total = sum(length * count for length, count in self._counts.items())
        return Lengths(
            total=total,
            mean=total / number,
            shortest=min(self._counts),
            p50=self._percentile(number, 50),
            p90=self._percentile(number, 90),
            p99=self._percentile(number, 99),
            longest=max(self._counts),
        )

    def _percentile(self, number: int, percent: int) -> int:
        wanted, seen = -(-number * percent // 100), 0
        for length in sorted(self._counts):
            seen += self._counts[length]
            if seen >= wanted:
                return length
        raise AssertionError("the counts add up to their number")
