"""Engine steps as a timeline that Chrome's tracing page and Perfetto open: drafting, verifying, the rest.

The format is the Trace Event Format's complete events; times are in microseconds.
"""

from __future__ import annotations

from typing import Any

from deepspec.types import RoundRecord

_TRACK = {"pid": 0, "tid": 0}


class Timeline:
    """An observer of steps that lays them end to end, what lies between two steps left out."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._now = 0.0

    def __call__(self, record: RoundRecord) -> None:
        told = {
            "requests": len(record.requests),
            "verify_tokens": record.verify_tokens,
            "prefill_tokens": record.prefill_tokens,
            "accepted": sum(one.accepted for one in record.requests),
            "emitted": sum(one.emitted for one in record.requests),
        }
        for name, ms in (
            ("draft", record.draft_ms),
            ("verify", record.verify_ms),
            ("other", record.other_ms),
        ):
            span = {"name": name, "ph": "X", "ts": self._now, "dur": 1e3 * ms, **_TRACK}
            self._events.append({**span, "args": told} if name == "verify" else span)
            self._now += 1e3 * ms
        held = {"name": "kv_tokens", "ph": "C", "ts": self._now, **_TRACK}
        self._events.append({**held, "args": {"tokens": record.kv_tokens}})

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {"displayTimeUnit": "ms", "traceEvents": self._events}
