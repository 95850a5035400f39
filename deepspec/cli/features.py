"""``deepspec features``: store the target's features of the training text, to train on them later."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.cli.console import (
    ConfigFlag,
    DeviceFlag,
    JsonFlag,
    QuietFlag,
    SetFlag,
    StrategyFlag,
    TargetDeviceFlag,
    TrustFlag,
    VerboseFlag,
    print_json,
    set_up_logging,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from deepspec.distributed import World
    from deepspec.features.planned import CacheReport


def features(
    *,
    strategy: StrategyFlag = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="`demo`, a Hugging Face name, or a folder.")
    ] = None,
    target_revision: Annotated[
        str | None, typer.Option("--target-revision", metavar="REV", help="Commit, branch or tag.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH", help="JSONL file, folder or glob; repeatable. As for train."),
    ] = None,
    config: ConfigFlag = None,
    set_: SetFlag = None,
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="FOLDER", help="Where to store them (features.folder).")
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="N", help="4, 8, 16 or 32 a number (features.bits).")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="I/N",
            help="Write the share of writer I of N alone; under torchrun each process is a writer.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how much disk they take; nothing is written.")
    ] = False,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Store the target's features of the training text; `train --set features.source=cached` reads them."""
    set_up_logging(quiet=quiet, verbose=verbose)
    from deepspec.distributed import join
    from deepspec.layers import resolve

    world = join()
    writer = world.together(lambda: _part(part, world))

    flags = {
        "target.name": target,
        "target.revision": target_revision,
        "target.device": target_device,
        "target.trust_remote_code": trust_remote_code or None,
        "data.paths": tuple(data) if data else None,
        "features.folder": folder,
        "features.bits": bits,
        "device": device,
    }
    settings = world.together(lambda: resolve(strategy, file=config, flags=flags, sets=set_ or []).config())
    world.together(settings.strategy.check)
    from deepspec.features.planned import plan_cache
    from deepspec.features.write import write_features

    with world.watched(lambda: "the shards that are complete are kept; run the same again"):
        plan = world.in_turn(lambda: plan_cache(settings))
        world.same_everywhere(
            "features", {"data": plan.identity["data"], "weights": plan.identity["weights"]}
        )
        report = plan.report()
        if not dry_run:
            if not quiet and world.is_main:
                stderr().print(_size(report), markup=False, soft_wrap=True)
            report = world.together(lambda: write_features(plan, part=writer))
            report = plan.report(int(sum(world.gather(report.num_written))))
    if not world.is_main:
        return None
    if json:
        return print_json(report.to_json())
    return stdout().print(_size(report) if dry_run else _what_next(report), markup=False, soft_wrap=True)


def _part(text: str | None, world: World) -> tuple[int, int]:
    """``I/N``, or the process's own; raises ConfigError."""
    from deepspec.errors import ConfigError

    if text is None:
        return world.rank + 1, world.size
    if not world.is_alone:
        raise ConfigError("--part and torchrun both say who writes what; give one of them")
    one, _, of = text.partition("/")
    if not (one.isdecimal() and of.isdecimal() and 1 <= int(one) <= int(of)):
        raise ConfigError(f"--part {text!r}: give I/N with 1 <= I <= N, as in 2/4")
    return int(one), int(of)


def _size(report: CacheReport) -> str:
    from deepspec.resources import size_text

    return (
        f"{report.num_tokens:,} tokens, layers {', '.join(map(str, report.layers)) or 'none'} and the last, "
        f"at {report.bits} bits: {size_text(report.num_bytes)}, {report.bytes_per_token:,.0f} bytes a token "
        f"({report.share:.3f} of bfloat16 everywhere); {report.num_missing} of {report.num_shards} shards to "
        f"write, {size_text(report.free_bytes)} free"
    )


def _what_next(report: CacheReport) -> str:
    if report.num_missing:
        return f"{report.num_missing} of {report.num_shards} shards are left for other parts"
    keys = ("source=cached", f"folder={shlex.quote(report.folder)}", f"bits={report.bits}")
    use = " ".join(f"--set features.{key}" for key in keys)
    return f"stored in {report.folder}: train on them with {use}"
