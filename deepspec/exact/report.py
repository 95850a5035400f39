"""What a check found: one verdict for each property."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Property:
    """One property's verdict.

    Attributes:
        detail: what was found; of a failure what is wrong and why that does harm.
        max_error: the largest error found, None where nothing is measured.
    """

    name: str
    passed: bool
    detail: str
    max_error: float | None


@dataclass(frozen=True)
class Report:
    """All properties of one strategy or part."""

    strategy: str
    properties: tuple[Property, ...]

    @property
    def passed(self) -> bool:
        """Whether every property holds."""
        return not self.failures

    @property
    def failures(self) -> tuple[Property, ...]:
        """The properties that do not hold."""
        return tuple(found for found in self.properties if not found.passed)

    def raise_if_failed(self) -> Report:
        """This report; raises AssertionError with every failed property's message."""
        if self.failures:
            lines = "\n".join(f"{found.name}: {found.detail}" for found in self.failures)
            raise AssertionError(f"{self.strategy} fails {len(self.failures)} properties\n{lines}")
        return self

    def to_json(self) -> dict[str, Any]:
        """``{"schema", "strategy", "passed", "properties": [{"name", "passed", "detail", "max_error"}]}``."""
        return {
            "schema": SCHEMA,
            "strategy": self.strategy,
            "passed": self.passed,
            "properties": [asdict(found) for found in self.properties],
        }
