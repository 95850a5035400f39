"""``deepspec serve-check``: a running server's accepted length against ours on the same prompts."""

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
from deepspec.cli.measuring import (
    BatchFlag,
    MaxTokensFlag,
    NumPromptsFlag,
    SeedFlag,
    TaskFileFlag,
    TasksFlag,
    TemperatureFlag,
    given_settings,
    joined,
)
from deepspec.cli.subject import DraftFlag, OptionFlag, RunArgument, open_subject

if TYPE_CHECKING:
    from deepspec.evaluate.acceptance import Interval


def serve_check(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Of a vLLM or SGLang server that nobody else uses.")
    ],
    run: RunArgument = None,
    *,
    draft: DraftFlag = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="With --draft: `demo`, a hub name, a folder."),
    ] = None,
    set_: OptionFlag = None,
    tasks: TasksFlag = None,
    task_file: TaskFileFlag = None,
    temperature: TemperatureFlag = None,
    batch: BatchFlag = None,
    num_prompts: NumPromptsFlag = None,
    max_tokens: MaxTokensFlag = None,
    seed: SeedFlag = None,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Compare a server's accepted length with ours on the same prompts; exit code 1 when they differ."""
    set_up_logging(quiet=quiet, verbose=verbose)
    from deepspec.formats.serve_check import serve_check

    given = given_settings(
        tasks,
        task_file,
        temperature=temperature,
        batch=batch,
        num_prompts=num_prompts,
        max_tokens=max_tokens,
        seed=seed,
    )
    loaded = open_subject(
        run,
        None,
        draft=draft,
        target=target,
        sets=set_,
        device=device,
        target_device=target_device,
        trust_remote_code=trust_remote_code,
    )
    found = serve_check(
        url,
        loaded,
        tasks=given.get("tasks"),
        task_files=task_file or (),
        config=joined(loaded.config.eval, given),
    )
    if json:
        print_json(found.to_json())
    else:
        paired = found.paired
        rows = [
            (found.engine, _text(found.theirs)),
            ("here", _text(found.ours)),
            ("difference", _text(None if paired is None else paired.difference)),
        ]
        stdout().print(table(("accepted length", "95 % interval"), rows))
        word = (
            "agree" if found.agrees else "differ: the server reads the drafter otherwise (deepspec inspect)"
        )
        stdout().print(f"over {found.num_prompts} prompts they {word}", markup=False, soft_wrap=True)
    if not found.agrees:
        raise typer.Exit(1)


def _text(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
