"""A strategy that is of use as it is built, put on its target: what can be measured without a run.

That is a model-free drafter, or one whose weights come from elsewhere (``BaseDrafter.pretrained``), with a
head that has none. Nothing here imports torch before :func:`compose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.config import RunConfig, TargetConfig
from deepspec.errors import ConfigError
from deepspec.paths import DEMO
from deepspec.runs import Run, load
from deepspec.strategy import Strategy

if TYPE_CHECKING:
    from deepspec.formats.opened import Origin
    from deepspec.strategy import Parts
    from deepspec.target import Target


@dataclass(frozen=True)
class Composed:
    """A strategy's parts on their target, as a :class:`deepspec.runs.Run` has them.

    Attributes:
        origin: the other project's checkpoint that the weights are from, None where there is none.
    """

    config: RunConfig
    target: Target
    parts: Parts
    origin: Origin | None = None


def compose(config: RunConfig, target: Target | None = None) -> Composed:
    """Load the target, unless it is given, and build the strategy's parts for it.

    Raises ConfigError for parts that do not fit or that nobody has trained, TargetError for a target that
    cannot be loaded.
    """
    from deepspec.target import load_target
    from deepspec.target.load import resolve_device
    from deepspec.train.assemble import assemble

    config.strategy.check()
    place = resolve_device(config.device)
    target = target or load_target(config.target, device=str(place))
    parts = assemble(config.strategy, target, device=place, dtype=target.dtype, seed=config.seed)
    _check_trained(parts)
    parts.modules().eval()
    return Composed(config=config, target=target, parts=parts)


def opened(
    run: Run | Composed | Strategy | str | Path, *, target: str | None = None, device: str | None = None
) -> Run | Composed:
    """What ``run`` names, loaded; ``target`` is a strategy's, the demo target when None.

    Raises ConfigError for a ``target`` beside a run, else as :func:`deepspec.runs.load` and :func:`compose`.
    """
    if isinstance(run, Strategy):
        return compose(RunConfig(strategy=run, target=TargetConfig(name=target or DEMO), device=device))
    if target is not None:
        raise ConfigError(f"target {target!r} was given beside a run, which has its own; leave it out")
    return load(run, device=device) if isinstance(run, str | Path) else run


def _check_trained(parts: Parts) -> None:
    found = [] if parts.drafter.pretrained else [f"drafter {parts.drafter.name!r}"]
    if next(parts.head.parameters(), None) is not None:
        found.append(f"head {parts.head.name!r}")
    if found:
        raise ConfigError(
            f"strategy {parts.strategy.name!r}: nobody has trained {' and '.join(found)} yet; run "
            f"`deepspec train --strategy {parts.strategy.name}` and give the run's folder, or give another "
            "strategy that needs no training"
        )
