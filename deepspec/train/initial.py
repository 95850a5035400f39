"""``--init-from``: training that starts from another run's drafter, with a fresh optimiser.

The other run stays as it is. Its drafter has to be for the same target and of the same shapes; a new run
remembers where it began in its configuration (``train.init_from``) and in the state of each checkpoint.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from deepspec.choice import chosen_state, split_run
from deepspec.errors import CheckpointError, ConfigError
from deepspec.runs import check_target, pinned, read_config
from deepspec.train.checkpoint import load_weights, summary

if TYPE_CHECKING:
    from deepspec.strategy import Parts, Strategy
    from deepspec.target import Target

logger = logging.getLogger(__name__)


def settings_of(run: str) -> dict[str, Any]:
    """Strategy and target of a run, as a layer of configuration; raises CheckpointError when it is none.

    Where things run, and whether foreign code may, is not the run's to say.
    """
    config = pinned(read_config(split_run(run)[0]), chosen_state(run)[1])
    target = config.target.model_dump(include={"name", "revision", "dtype"})
    return {"strategy": config.strategy.model_dump(mode="json"), "target": target}


def start_from_run(run: str, parts: Parts, target: Target) -> dict[str, Any]:
    """Load the drafter of ``run`` into ``parts``; what a checkpoint's state says of it.

    Raises:
        CheckpointError: no run, or one without a checkpoint.
        ConfigError: a drafter for another target, or of other shapes.
    """
    folder, _ = split_run(run)
    checkpoint, state = chosen_state(run)
    try:
        check_target(state, target, folder)
    except CheckpointError as error:
        name = state["target"].get("name")
        raise ConfigError(
            f"--init-from {run}: its drafter is for target {name!r}, and {target.name!r} is another model; "
            f"give --target {name}, or train without --init-from"
        ) from error
    misfits = load_weights(checkpoint, parts)
    if misfits:
        theirs = read_config(folder).strategy
        raise ConfigError(
            f"--init-from {run}: its weights are those of {_described(theirs)}, and this is "
            f"{_described(parts.strategy)}: {summary(misfits)}; leave out --strategy and --set to train on "
            "what the run holds, or train without --init-from"
        )
    logger.info("the drafter starts from %s, step %s", folder, state["step"])
    return {"run": run, "step": state["step"], "strategy": state["strategy"]["name"]}


def _described(strategy: Strategy) -> str:
    return f"{strategy.name!r} (drafter {strategy.drafter.type}, head {strategy.head.type})"
