"""What the README's tables share: intervals, ratios, and what a record was measured on."""

from __future__ import annotations

from typing import Any


def tau(run: dict[str, Any]) -> str:
    """A measured run's accepted length."""
    return mean_ci(run["accepted_length"])


def mean_ci(found: dict[str, Any]) -> str:
    """Mean and 95 % interval."""
    low, high = found["ci95"]
    return f"{found['mean']:.2f} ({low:.2f}–{high:.2f})"


def ratio(value: dict[str, float]) -> str:
    """Median and quartiles, as times."""
    return f"{value['median']:.2f}× ({value['q1']:.2f}–{value['q3']:.2f})"


def machine(record: dict[str, Any], statistics: str = "; medians with quartiles") -> str:
    """What a record was measured on."""
    versions = record["versions"]
    limit = " Not measured on a GPU." if record["device_type"] == "cpu" else ""
    return (
        f"{record['date']}, {record['device']}, {record['threads']} threads, torch {versions['torch']}, "
        f"transformers {versions['transformers']}{statistics}.{limit}"
    )
