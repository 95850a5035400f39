"""Decoding with a trained drafter in another way: by a stored calibration, by what a user asks for.

What has weights is settled by training; calibrator, policy and verifier are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepspec.errors import ConfigError
from deepspec.resources import writing
from deepspec.runs import newest_state, write_json
from deepspec.strategy import Parts

#: The parts without weights.
DECODING_PARTS = ("calibrator", "policy", "verifier")


def check_changes(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """``changes`` of :func:`deepspec.load`; raises ConfigError for what is settled once a run is trained."""
    head = changes.get("head", {})
    fixed = [key for key in changes if key not in ("head", *DECODING_PARTS)]
    fixed += [
        f"head.{key}" for key in (head if isinstance(head, Mapping) else ("type",)) if key != "confidence"
    ]
    if fixed:
        raise ConfigError(
            f"{fixed[0]!r} of a trained run cannot be changed; allowed are head.confidence and the options "
            f"of {', '.join(DECODING_PARTS)}"
        )
    return changes


def redecoded(parts: Parts, changes: Mapping[str, Any]) -> Parts:
    """Trained ``parts`` with other options for decoding, as :meth:`Strategy.replace` has them.

    Raises ConfigError when they do not fit, or ask for weights that were not trained.
    """
    if not changes:
        return parts
    strategy = parts.strategy.replace(**changes)
    old = parts.modules().state_dict()
    place = next(iter(old.values()))
    with torch.random.fork_rng(devices=[]):
        made = strategy.build(parts.drafter.context.target)
    modules = made.modules()
    untrained = [name for name in modules.state_dict() if name not in old]
    if untrained:
        raise ConfigError(
            f"head.confidence={made.head.confidence} needs {untrained[0]}, which this run did not train; "
            "give one that needs no weights (row_max, none), or train with it"
        )
    modules.load_state_dict({name: old[name] for name in modules.state_dict()})
    modules.to(place.device, place.dtype)
    return made


def calibration_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a checkpoint's stored calibration changes; none when it has none."""
    return dict(state.get("calibration", {}).get("strategy", {}))


def store_calibration(folder: Path, calibration: Mapping[str, Any]) -> Path:
    """Put a calibration into the newest checkpoint, where :func:`deepspec.load` finds it; the file's path.

    ``calibration["strategy"]`` are the changed parts. Raises CheckpointError, ResourceError.
    """
    checkpoint, state = newest_state(folder)
    path = checkpoint / "state.json"
    with writing(path, lambda: "give --no-save, or a copy of the run that can be written"):
        write_json(path, {**state, "calibration": calibration})
    return path
