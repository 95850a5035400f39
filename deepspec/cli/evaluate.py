"""``deepspec eval``: measure a run's accepted length and speed."""

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


def evaluate(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder, or `demo`, the drafter that ships with DeepSpec."),
    ],
    *,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", metavar="NAMES", help="Separated by commas, or repeated.")
    ] = None,
    task_file: Annotated[
        list[str] | None,
        typer.Option("--task-file", metavar="NAME=FILE", help="Prompts of your own, JSONL; repeatable."),
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 is greedy.")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Requests decoded together.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option("--num-prompts", metavar="N", help="Per task.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="New tokens a prompt.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the sampling.")] = None,
    against_transformers: Annotated[
        bool, typer.Option("--against-transformers", help="Also time transformers' generate.")
    ] = False,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Measure accepted length, acceptance per position, and speed against plain decoding."""
    set_up_logging(quiet=quiet, verbose=verbose)
    import deepspec
    from deepspec.cli.report import result_table
    from deepspec.config import EvalConfig
    from deepspec.evaluate.tasks import split_task_file
    from deepspec.validation import validate

    names = [name.strip() for given in tasks or [] for name in given.split(",") if name.strip()]
    flags = {
        "tasks": tuple(names) or None,
        "temperature": temperature,
        "batch": batch,
        "num_prompts": num_prompts,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    for file in task_file or ():
        split_task_file(file)  # a wrong form is refused before anything is loaded
    validate(EvalConfig, given, "eval")
    loaded = deepspec.load(
        run, device=device, target_device=target_device, trust_remote_code=trust_remote_code
    )
    settings = validate(EvalConfig, {**loaded.config.eval.model_dump(), **given}, "eval")
    report = deepspec.evaluate(
        loaded,
        tasks=names or None,
        task_files=task_file or (),
        config=settings,
        against_transformers=against_transformers,
    )
    if json:
        return print_json(report.to_json())
    return stdout().print(result_table(report))
