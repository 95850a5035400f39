"""The files by which an engine schedules verification: temperatures of the confidences, and the SPS curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.curves import SpsCurve
from deepspec.evaluate.calibration import sglang_temperatures
from deepspec.runs import Run, newest_state, write_json

if TYPE_CHECKING:
    from deepspec.composed import Composed

_STS, _SPS = "sts.json", "sps.json"


def schedule_files(subject: Run | Composed, folder: Path, sps: Path | None) -> dict[str, str]:
    """Write what SGLang reads of a confidence that is trained; each file by the flag that names it."""
    if subject.parts.head.confidence != "linear":
        return {}
    found = {}
    if (temperatures := _temperatures(subject)) is not None:
        write_json(folder / _STS, temperatures)
        found["--speculative-dspark-confidence-sts-path"] = _STS
    curve = SpsCurve.read(sps) if sps is not None else subject.parts.policy.curve
    if curve is not None:
        write_json(folder / _SPS, curve.to_sglang())
        found["--speculative-dspark-sps-table-path"] = _SPS
    return found


def _temperatures(subject: Run | Composed) -> Mapping[str, Any] | None:
    """As ``deepspec calibrate`` stored them."""
    if not isinstance(subject, Run):
        return None
    stored = newest_state(subject.path)[1].get("calibration", {})
    return sglang_temperatures(stored) if stored.get("confidence") == "linear" else None
