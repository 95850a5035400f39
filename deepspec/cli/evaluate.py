"""``deepspec eval``: measure the accepted length and speed of a run, or of what needs no training."""

from __future__ import annotations

import logging
from typing import Annotated, Any

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
    given_settings,
    joined,
)
from deepspec.cli.subject import (
    DraftFlag,
    OptionFlag,
    RunArgument,
    TargetFlag,
    UntrainedFlag,
    open_subject,
)

logger = logging.getLogger(__name__)


def evaluate(
    run: RunArgument = None,
    *,
    strategy: UntrainedFlag = None,
    draft: DraftFlag = None,
    target: TargetFlag = None,
    set_: OptionFlag = None,
    tasks: TasksFlag = None,
    task_file: TaskFileFlag = None,
    temperature: TemperatureFlag = None,
    batch: BatchFlag = None,
    num_prompts: NumPromptsFlag = None,
    max_tokens: MaxTokensFlag = None,
    seed: SeedFlag = None,
    against_transformers: Annotated[
        bool, typer.Option("--against-transformers", help="Also time transformers' generate.")
    ] = False,
    against_verifier: Annotated[
        str | None,
        typer.Option(
            "--against-verifier", metavar="NAME", help="Also decode with this verifier, and compare τ."
        ),
    ] = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Write the rounds as Parquet.")
    ] = None,
    timeline: Annotated[
        str | None,
        typer.Option("--timeline", metavar="FILE", help="Write the steps as JSON for Chrome or Perfetto."),
    ] = None,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Measure accepted length, acceptance per position, and speed against plain decoding.

    What is measured by a run's own settings is kept in it, for `deepspec runs`.
    """
    set_up_logging(quiet=quiet, verbose=verbose)
    import deepspec
    from deepspec.cli.results import result_table
    from deepspec.distributed import join

    world = join()
    given = world.together(
        lambda: given_settings(
            tasks,
            task_file,
            temperature=temperature,
            batch=batch,
            num_prompts=num_prompts,
            max_tokens=max_tokens,
            seed=seed,
        )
    )
    loaded = world.together(
        lambda: open_subject(
            run,
            strategy,
            draft=draft,
            target=target,
            sets=set_,
            device=device,
            target_device=target_device,
            trust_remote_code=trust_remote_code,
        )
    )
    report = deepspec.evaluate(
        loaded,
        tasks=given.get("tasks"),
        task_files=task_file or (),
        config=joined(loaded.config.eval, given),
        against_transformers=against_transformers,
        against_verifier=against_verifier,
        trace=trace,
        timeline=timeline,
    )
    if not world.is_main:
        return None
    if run is not None and not (given or task_file or set_):
        _keep(run, report.to_json())
    if json:
        return print_json(report.to_json())
    return stdout().print(result_table(report))


def _keep(run: str, report: dict[str, Any]) -> None:
    """Put the report where training puts it, unless it is of the shipped drafter or of a checkpoint that was
    chosen, or cannot be written."""
    from deepspec.choice import split_run
    from deepspec.paths import DEMO
    from deepspec.runs import store_evaluation

    folder, choice = split_run(run)
    if run == DEMO or choice is not None:
        return
    try:
        store_evaluation(folder, report)
    except OSError as error:
        logger.warning("not kept for `deepspec runs`: %s", error)
