"""``deepspec train``: train a drafter, measure it, show the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
    from deepspec.config import RunConfig
    from deepspec.evaluate import EvalReport
    from deepspec.runs import Run


def train(
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
        typer.Option(
            "--data",
            metavar="PATH",
            help="JSONL, JSON or Parquet file, folder or glob; repeatable. By default, shipped text that the "
            "demo target wrote, or for another target the sources of installed packages.",
        ),
    ] = None,
    config: ConfigFlag = None,
    set_: SetFlag = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Optimiser steps.")] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FOLDER", help="Run folder; runs/<strategy>-<time> by default."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="RUN",
            help="Start from the drafter of a run folder or `demo`, by default with its strategy and target.",
        ),
    ] = None,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of weights, data order, anchors.")
    ] = None,
    trust_remote_code: TrustFlag = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take, after two steps; writes nothing.")
    ] = False,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Do not measure at the end.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Train a drafter for a target, then measure it on held-out text."""
    set_up_logging(quiet=quiet, verbose=verbose)
    flags = {
        "target.name": target,
        "target.revision": target_revision,
        "target.device": target_device,
        "target.trust_remote_code": trust_remote_code or None,
        "data.paths": tuple(data) if data else None,
        "train.num_steps": steps,
        "train.init_from": init_from,
        "out": out,
        "device": device,
        "seed": seed,
    }
    from deepspec.distributed import join

    world = join()
    settings = world.together(lambda: _settings(strategy, config, flags, set_ or [], resume=resume))
    if dry_run:
        return _estimate(settings, resume=resume, json=json)
    run = _train(settings, resume=resume, check_tasks=not no_eval, quiet=quiet)
    report = (
        None
        if no_eval or run.target.is_sharded
        else _evaluate(run, settings, quiet=quiet or not world.is_main)
    )
    if not world.is_main:
        return None
    if json:
        result = report.to_json() if report is not None else {"schema": 1, "strategy": settings.strategy.name}
        return print_json({**result, "run": str(run.path), "step": run.step})
    if report is not None:
        from deepspec.cli.results import result_table

        stdout().print(result_table(report))
    return stdout().print(f"run folder  {run.path}", markup=False, soft_wrap=True)


def _settings(
    strategy: str | None, file: str | None, flags: dict[str, Any], sets: list[str], *, resume: bool
) -> RunConfig:
    """The configuration; ``--resume --out RUN`` alone takes the run's own."""
    from pathlib import Path

    from deepspec.errors import ConfigError
    from deepspec.layers import resolve

    if resume:
        if flags["out"] is None:
            raise ConfigError(
                "--resume needs --out FOLDER, the run to go on with (`deepspec runs` lists them)"
            )
        saved = Path(flags["out"]) / "config.json"
        if file is None and strategy is None:
            if not saved.is_file():
                raise ConfigError(f"--resume: {flags['out']} holds no run (there is no config.json in it)")
            file = str(saved)
            # Trust is given on the command line alone: the folder may be somebody else's.
            flags = {**flags, "target.trust_remote_code": bool(flags["target.trust_remote_code"])}
    settings = resolve(
        strategy, file=file, flags=flags, sets=sets, run=None if resume else _origin(flags)
    ).config()
    settings.strategy.check()
    return settings


def _estimate(settings: RunConfig, *, resume: bool, json: bool) -> None:
    from deepspec.cli.console import table
    from deepspec.cli.progress import clock
    from deepspec.errors import ConfigError
    from deepspec.resources import size_text
    from deepspec.train.estimate import estimate

    if resume:
        raise ConfigError("--dry-run is about a new run, --resume about one that was begun; give one of them")
    found = estimate(settings)
    if json:
        return print_json(found.to_json())
    steps = settings.train.num_steps
    rows = [
        ("drafter", f"{found.drafter_parameters:,} parameters, {found.trained_parameters:,} trained"),
        ("target", f"{found.target_parameters:,} parameters in memory"),
        ("text", f"{found.text_tokens:,} tokens in {found.num_rows:,} rows"),
        ("training", f"{found.epochs:.2g} times over it, {found.step_tokens:,} tokens a step"),
        ("memory", f"{size_text(found.memory_bytes)} at the most in two steps"),
        ("disk", f"{size_text(found.disk_bytes)} of checkpoints; {size_text(found.free_bytes)} free"),
        ("time", f"{clock(found.seconds)} for {steps:,} steps of {found.step_seconds:.3g} s"),
    ]
    return stdout().print(table(("training would take", ""), rows))


def _origin(flags: dict[str, Any]) -> dict[str, Any] | None:
    """Strategy and target of the run that ``--init-from`` names."""
    if flags["train.init_from"] is None:
        return None
    from deepspec.train.initial import settings_of

    return settings_of(flags["train.init_from"])


def _train(settings: RunConfig, *, resume: bool, check_tasks: bool, quiet: bool) -> Run:
    from contextlib import nullcontext

    import deepspec
    from deepspec.cli.progress import TrainingProgress
    from deepspec.distributed import of_environment

    progress = (
        None
        if quiet or not of_environment().is_main
        else TrainingProgress(stderr(), every=settings.train.log_every)
    )
    with progress or nullcontext():
        return deepspec.train(
            settings.strategy,
            config=settings,
            out=settings.out,
            resume=resume,
            check_tasks=check_tasks,
            observers=[progress] if progress is not None else [],
        )


def _evaluate(run: Run, settings: RunConfig, *, quiet: bool) -> EvalReport:
    import deepspec
    from deepspec.distributed import of_environment
    from deepspec.resources import writing
    from deepspec.runs import store_evaluation

    if not run.target.is_whole:
        run = deepspec.load(
            run.path,
            device=settings.device,
            target_device=settings.target.device,
            trust_remote_code=settings.target.trust_remote_code,
        )
    if not quiet:
        stderr().print(f"measuring on {', '.join(settings.eval.tasks)}", markup=False)
    report = deepspec.evaluate(run, config=settings.eval, against_transformers=True)
    path = run.path / "eval.json"
    if not of_environment().is_main:
        return report
    with writing(path, lambda: f"the run is whole; measure it again with: deepspec eval {run.path}"):
        store_evaluation(run.path, report.to_json())
    return report
