"""The files by which an engine schedules verification: temperatures of the confidences, and the SPS curve."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.curves import SpsCurve
from deepspec.evaluate.calibration import sglang_temperatures
from deepspec.runs import Run, newest_state, write_json

if TYPE_CHECKING:
    from deepspec.composed import Composed


def schedule_files(
    subject: Run | Composed, folder: Path, kinds: Collection[str], sps: Path | None
) -> dict[str, str]:
    """Write those of ``sts`` and ``sps`` that are wanted and there is something for; each kind's file."""
    curve = SpsCurve.read(sps) if sps is not None else subject.parts.policy.curve
    contents = {"sts": _temperatures(subject), "sps": None if curve is None else curve.to_sglang()}
    found = {}
    for kind, content in contents.items():
        if kind in kinds and content is not None:
            found[kind] = f"{kind}.json"
            write_json(folder / found[kind], content)
    return found


def _temperatures(subject: Run | Composed) -> Mapping[str, Any] | None:
    """Of a trained confidence, as ``deepspec calibrate`` stored them."""
    if not isinstance(subject, Run):
        return None
    stored = newest_state(subject.path)[1].get("calibration", {})
    return sglang_temperatures(stored) if stored.get("confidence") == "linear" else None
