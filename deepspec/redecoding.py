"""Decoding with a trained drafter in another way: by a stored calibration, by what a user asks for.

What has weights is settled by training; calibrator, policy and verifier are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.choice import chosen_state
from deepspec.errors import ConfigError
from deepspec.plugins import create_plugin_manager
from deepspec.resources import writing
from deepspec.runs import write_json
from deepspec.strategy import Parts, check_fit

if TYPE_CHECKING:
    from deepspec.interfaces import SequentialHead

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


def redecoded(parts: Parts, **changes: Any) -> Parts:
    """``parts`` with other options for decoding, as :meth:`Strategy.replace` has them; weights are shared.

    Calibrator, policy and verifier are made anew where ``changes`` has them, the head where its confidence
    is another. Raises ConfigError when they do not fit, or ask for weights that were not trained.
    """
    if not changes:
        return parts
    strategy = parts.strategy.replace(**changes)
    manager = create_plugin_manager()
    found = strategy.check(manager)
    context = parts.verifier.context
    others = {kind: found[kind][0](found[kind][1], context) for kind in DECODING_PARTS if kind in changes}
    cls, config = found["head"]
    head = parts.head if config == parts.head.config else _with_weights(cls(config, context), parts.head)
    made = replace(parts, strategy=strategy, head=head, **others)
    check_fit(made)
    if made.policy.needs_confidence:
        from deepspec.train.confidence import check_trained  # training measures, which decodes in another way

        check_trained(made, manager, f"policy {made.policy.name!r}")
    return made


def _with_weights(head: SequentialHead[Any], trained: SequentialHead[Any]) -> SequentialHead[Any]:
    """``head`` with the weights of ``trained``, which it may have fewer of; raises ConfigError for others."""
    weights = trained.state_dict()
    names = head.state_dict().keys()
    if untrained := sorted(names - weights.keys()):
        raise ConfigError(
            f"head.confidence={head.confidence} needs head.{untrained[0]}, which this run did not train; "
            "give one that needs no weights (row_max, none), or train with it"
        )
    for tensor in weights.values():
        head.to(tensor.device, tensor.dtype if tensor.is_floating_point() else None)
    head.load_state_dict({name: weights[name] for name in names})
    return head.train(trained.training)


def calibration_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a checkpoint's stored calibration changes; none when it has none."""
    return dict(state.get("calibration", {}).get("strategy", {}))


def store_calibration(run: str | Path, calibration: Mapping[str, Any]) -> Path:
    """Put a calibration into the checkpoint that :func:`deepspec.load` takes for ``run``; the file's path.

    ``calibration["strategy"]`` are the changed parts. Raises CheckpointError, ResourceError.
    """
    checkpoint, state = chosen_state(run)
    path = checkpoint / "state.json"
    with writing(path, lambda: "give --no-save, or a copy of the run that can be written"):
        write_json(path, {**state, "calibration": calibration})
    return path
