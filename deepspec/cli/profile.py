"""``deepspec profile``: measure the SPS curve that schedulers go by, on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.cli.console import (
    DeviceFlag,
    JsonFlag,
    QuietFlag,
    TargetDeviceFlag,
    TrustFlag,
    VerboseFlag,
    print_json,
    set_up_logging,
    stdout,
    table,
)
from deepspec.cli.measuring import check_file

if TYPE_CHECKING:
    from deepspec.curves import SpsCurve
    from deepspec.strategy import Parts
    from deepspec.target import Target


def profile(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run folder, or `demo`; what drafting takes, too."),
    ] = None,
    *,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Alone: `demo`, a Hugging Face name, a folder."),
    ] = None,
    draft_length: Annotated[
        int | None, typer.Option("--draft-length", metavar="G", help="With --target; 7 by default.")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", metavar="R", help="That decode together.")] = 16,
    context: Annotated[
        int, typer.Option("--context", metavar="N", help="Positions each of them holds.")
    ] = 256,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", help="Beside them in a step, at most.")
    ] = 512,
    repeats: Annotated[int, typer.Option(metavar="N", help="Rounds of each point, taken twice.")] = 5,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The curve's file.")
    ] = "sps.json",
    sglang: Annotated[
        str | None, typer.Option("--sglang", metavar="FILE", help="Also write the curve as SGLang reads it.")
    ] = None,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Measure steps per second against the tokens in a step, and what drafting takes."""
    set_up_logging(quiet=quiet, verbose=verbose)
    from deepspec.evaluate import ProfileConfig
    from deepspec.evaluate import profile as measure

    config = ProfileConfig(requests, context, prompt_tokens, repeats)
    check_file("--output", output)
    if sglang is not None:
        check_file("--sglang", sglang)
    opened, parts = _open(
        run,
        target,
        draft_length,
        device=device,
        target_device=target_device,
        trust_remote_code=trust_remote_code,
    )
    curve = measure(opened, parts, draft_length=7 if draft_length is None else draft_length, config=config)
    said = _write(curve, output, sglang)
    if json:
        return print_json(curve.to_json())
    _print(curve)
    return stdout().print("\n".join(said), soft_wrap=True, markup=False)


def _open(
    run: str | None,
    target: str | None,
    draft_length: int | None,
    *,
    device: str | None,
    target_device: str | None,
    trust_remote_code: bool,
) -> tuple[Target, Parts | None]:
    """The target, and a run's parts; raises ConfigError when not just one of the two was given."""
    from deepspec.config import TargetConfig
    from deepspec.errors import ConfigError
    from deepspec.runs import load
    from deepspec.target import load_target
    from deepspec.train.assemble import for_decoding

    if (run is None) == (target is None):
        given = "" if run is None else f"RUN {run!r} and --target {target!r} were both given; "
        raise ConfigError(f"{given}give one of RUN, a run folder or `demo`, and --target NAME")
    if target is not None:
        config = TargetConfig(name=target, device=target_device, trust_remote_code=trust_remote_code)
        return load_target(config, device=device), None
    if draft_length is not None:
        raise ConfigError("--draft-length goes with --target; a run has its own")
    loaded = load(str(run), device=device, target_device=target_device, trust_remote_code=trust_remote_code)
    return loaded.target, for_decoding(loaded.parts, loaded.target)


def _write(curve: SpsCurve, output: str, sglang: str | None) -> list[str]:
    """Store and export; a line for each file."""
    from functools import partial
    from pathlib import Path

    from deepspec.resources import writing
    from deepspec.runs import write_json

    files = [(output, "--output", curve.to_json())]
    if sglang is not None:
        files.append((sglang, "--sglang", curve.to_sglang()))
    for path, flag, content in files:
        with writing(Path(path), partial(str.format, "choose another {}", flag)):
            write_json(Path(path), content)
    said = [f"stored in {output}: use it with --set policy.type=prefix --set policy.curve={output}"]
    return said if sglang is None else [*said, f"for SGLang: {sglang}"]


def _print(curve: SpsCurve) -> None:
    stdout().print(
        f"{curve.model} in {curve.dtype} on {curve.hardware}, up to {curve.num_requests} requests of "
        f"{curve.context_length:.0f} positions; medians, and half the quartiles' distance",
        soft_wrap=True,
        markup=False,
    )
    spread = curve.spread or (0.0,) * len(curve.verify_tokens)
    rows = [
        (f"{tokens:,}", f"{speed:.1f}", f"{1e3 / speed:.2f}", f"{100 * apart:.0f}%")
        for tokens, speed, apart in zip(curve.verify_tokens, curve.steps_per_s, spread, strict=True)
    ]
    stdout().print(table(("tokens in a step", "steps/s", "ms", "±"), rows))
    if curve.draft is not None:
        cost = curve.draft
        stdout().print(
            f"drafting takes {1e3 * cost.seconds:.2f} ms a round, {1e3 * cost.seconds_per_position:.3f} ms a "
            f"position and {1e3 * cost.seconds_per_token:.3f} ms a token beside; taking in text "
            f"{1e3 * cost.extend_seconds:.2f} ms and {1e3 * cost.extend_seconds_per_token:.3f} ms a token",
            soft_wrap=True,
            markup=False,
        )
