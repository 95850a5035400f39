"""``deepspec report``: one page with everything about runs."""

from __future__ import annotations

from typing import Annotated

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
)
from deepspec.cli.measuring import (
    BatchFlag,
    MaxTokensFlag,
    NumPromptsFlag,
    SeedFlag,
    TaskFileFlag,
    TasksFlag,
    TemperatureFlag,
    check_file,
    given_settings,
    joined,
)


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders of one target, or `demo`.")
    ],
    *,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = "report.html",
    curve: Annotated[
        str | None,
        typer.Option("--curve", metavar="FILE", help="An SPS curve of `profile`, not a new one."),
    ] = None,
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
    """Measure runs and write a page that needs no other file."""
    set_up_logging(quiet=quiet, verbose=verbose)
    from pathlib import Path

    from deepspec.curves import SpsCurve
    from deepspec.evaluate import portraits_json, portray, profile
    from deepspec.evaluate.comparison import run_names
    from deepspec.report.page import report_html
    from deepspec.resources import writing
    from deepspec.runs import load_all
    from deepspec.train.assemble import for_decoding

    given = given_settings(
        tasks,
        task_file,
        temperature=temperature,
        batch=batch,
        num_prompts=num_prompts,
        max_tokens=max_tokens,
        seed=seed,
    )
    check_file("--output", output)
    measured = None if curve is None else SpsCurve.read(curve)
    loaded = load_all(runs, device=device, target_device=target_device, trust_remote_code=trust_remote_code)
    settings = joined(loaded[0].config.eval, given)
    portraits = [
        portray(
            run,
            name,
            measured or profile(run.target, for_decoding(run.parts, run.target)),
            tasks=given.get("tasks"),
            task_files=task_file or (),
            config=settings,
        )
        for run, name in zip(loaded, run_names(loaded), strict=True)
    ]
    found = portraits_json(portraits)
    with writing(Path(output), lambda: "choose another --output"):
        Path(output).write_text(report_html(found), encoding="utf-8")
    if json:
        return print_json(found)
    return stdout().print(f"page: {output}", soft_wrap=True, markup=False)
