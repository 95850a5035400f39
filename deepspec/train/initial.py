"""``--init-from``: training that starts from a drafter, a run's or another project's, with a fresh optimiser.

The other stays as it is. Its drafter has to be for the same target and of the same shapes; a new run
remembers where it began in its configuration (``train.init_from``) and in the state of each checkpoint.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from deepspec.choice import chosen_state, split_run
from deepspec.errors import CheckpointError, ConfigError
from deepspec.formats.foreign import is_foreign, read_foreign, read_weights
from deepspec.formats.layout import norm_factors
from deepspec.formats.pairing import check_claim
from deepspec.runs import check_target, pinned, read_config
from deepspec.train.checkpoint import fit_weights, load_weights, summary

if TYPE_CHECKING:
    from deepspec.strategy import Parts, Strategy
    from deepspec.target import Target

logger = logging.getLogger(__name__)


def settings_of(run: str) -> dict[str, Any]:
    """Strategy and target of a run, as a layer of configuration; raises CheckpointError when it is none.

    Where things run, and whether foreign code may, is not the run's to say. Another project's checkpoint
    has a strategy, and mostly no target.
    """
    if is_foreign(run):
        foreign = read_foreign(run, "--init-from")
        own = {copy.option: True for copy in foreign.layout.copies if copy.tensor in foreign.header.files}
        options = {option: True for option in own if option is not None}  # a head in the file is trained on
        strategy = foreign.layout.strategy.replace(drafter=options)
        found: dict[str, Any] = {"strategy": strategy.model_dump(mode="json")}
        named = foreign.layout.claim.name
        return found if named is None else {**found, "target": {"name": named}}
    config = pinned(read_config(split_run(run)[0]), chosen_state(run)[1])
    target = config.target.model_dump(include={"name", "revision", "dtype"})
    return {"strategy": config.strategy.model_dump(mode="json"), "target": target}


def start_from_run(run: str, parts: Parts, target: Target) -> dict[str, Any]:
    """Load the drafter of ``run`` into ``parts``; what a checkpoint's state says of it.

    Raises:
        CheckpointError: no run, or one without a checkpoint.
        ConfigError: a drafter for another target, or of other shapes.
    """
    if is_foreign(run):
        return _start_from_foreign(run, parts, target)
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
        raise ConfigError(_misfit(run, read_config(folder).strategy, parts, misfits))
    logger.info("the drafter starts from %s, step %s", folder, state["step"])
    return {"run": run, "step": state["step"], "strategy": state["strategy"]["name"]}


def _start_from_foreign(name: str, parts: Parts, target: Target) -> dict[str, Any]:
    foreign = read_foreign(name, "--init-from")
    check_claim(foreign.header, foreign.layout.claim, target)
    own = [name for name, value in parts.strategy.drafter.options.items() if value is True]
    strategy, weights, _ = read_weights(foreign, target, own=own)
    misfits = fit_weights(norm_factors(weights, parts.modules(), add=-1), parts)
    if misfits:
        raise ConfigError(_misfit(name, strategy, parts, misfits))
    logger.info("the drafter starts from %s, layout %s", name, foreign.format.name)
    return {"run": name, "layout": foreign.format.name, "strategy": strategy.name}


def _misfit(name: str, theirs: Strategy, parts: Parts, misfits: list[str]) -> str:
    return (
        f"--init-from {name}: its weights are those of {_described(theirs)}, and this is "
        f"{_described(parts.strategy)}: {summary(misfits)}; leave out --strategy and --set to train on "
        "what the run holds, or train without --init-from"
    )


def _described(strategy: Strategy) -> str:
    return f"{strategy.name!r} (drafter {strategy.drafter.type}, head {strategy.head.type})"
