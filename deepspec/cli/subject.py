"""What a command decodes with: a run, with ``--strategy`` a strategy that needs no training, or with
``--draft`` another project's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deepspec.composed import Composed
    from deepspec.runs import Run

RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run folder, or `demo`, the drafter that ships with DeepSpec."),
]
UntrainedFlag = Annotated[
    str | None,
    typer.Option("--strategy", metavar="NAME", help="Instead of a run, a strategy that needs no training."),
]
DraftFlag = Annotated[
    str | None,
    typer.Option("--draft", metavar="NAME", help="Instead of a run, a checkpoint: a folder or a hub name."),
]
TargetFlag = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="NAME", help="With --strategy or --draft: `demo`, a hub name, a folder."
    ),
]
OptionFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="With --strategy any value; of a run head.confidence, calibrator, policy, verifier.",
    ),
]


def open_subject(
    run: str | None,
    strategy: str | None,
    *,
    draft: str | None,
    target: str | None,
    sets: Sequence[str] | None,
    device: str | None,
    target_device: str | None,
    trust_remote_code: bool,
) -> Run | Composed:
    """Load the one that was given; raises ConfigError when several or none were."""
    from deepspec.composed import compose
    from deepspec.errors import ConfigError
    from deepspec.layers import parse_sets, resolve
    from deepspec.runs import load

    given = {"RUN": run, "--strategy": strategy, "--draft": draft}
    named = [f"{name} {value!r}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} were given; give one of them")
    if not named:
        raise ConfigError(
            "give RUN, a run folder or `demo` (`deepspec runs` lists what there is), --draft NAME, another "
            "project's checkpoint, or --strategy NAME, a strategy that needs no training"
        )
    if draft is not None:
        from deepspec.formats.opened import open_draft

        return open_draft(
            draft,
            target=target,
            device=device,
            target_device=target_device,
            trust_remote_code=trust_remote_code,
            changes=parse_sets(sets or ()),
        )
    if run is not None:
        if target is not None:
            raise ConfigError("--target goes with --strategy and --draft; a run has its own target")
        return load(
            run,
            device=device,
            target_device=target_device,
            trust_remote_code=trust_remote_code,
            changes=parse_sets(sets or ()),
        )
    flags = {
        "target.name": target,
        "target.device": target_device,
        "target.trust_remote_code": trust_remote_code or None,
        "device": device,
    }
    return compose(resolve(strategy, flags=flags, sets=sets or ()).config())
