"""``deepspec calibrate``: fit what a run's confidences mean, and say how well they do."""

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
from deepspec.cli.subject import OptionFlag

if TYPE_CHECKING:
    from deepspec.evaluate.calibration import CalibrationReport


def calibrate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or `demo`.")],
    *,
    calibrator: Annotated[
        str | None,
        typer.Option("--calibrator", metavar="NAME", help="The run's own, or else `sequential`."),
    ] = None,
    set_: OptionFlag = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Rounds of `eval --trace`, not new ones.")
    ] = None,
    soft: Annotated[
        bool, typer.Option("--soft", help="Fit to the chances of rows, not to what was accepted.")
    ] = False,
    tasks: TasksFlag = None,
    task_file: TaskFileFlag = None,
    temperature: TemperatureFlag = None,
    batch: BatchFlag = None,
    num_prompts: NumPromptsFlag = None,
    max_tokens: MaxTokensFlag = None,
    seed: SeedFlag = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Store it with the checkpoint.")] = True,
    sglang: Annotated[
        str | None, typer.Option("--sglang", metavar="FILE", help="Also write temperatures as SGLang reads.")
    ] = None,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Fit a calibrator to held-out rounds, measure it on others, store it in the run."""
    set_up_logging(quiet=quiet, verbose=verbose)
    import deepspec
    from deepspec.layers import parse_sets
    from deepspec.runs import load

    given = given_settings(
        tasks,
        task_file,
        temperature=temperature,
        batch=batch,
        num_prompts=num_prompts,
        max_tokens=max_tokens,
        seed=seed,
    )
    loaded = load(
        run,
        device=device,
        target_device=target_device,
        trust_remote_code=trust_remote_code,
        changes=parse_sets(set_ or ()),
    )
    report = deepspec.calibrate(
        loaded,
        calibrator=calibrator,
        tasks=given.get("tasks"),
        task_files=task_file or (),
        config=joined(loaded.config.eval, given),
        trace=trace,
        soft=soft,
    )
    said = _write(run, report, save=save, sglang=sglang)
    if json:
        return print_json(report.to_json())
    _print(report)
    return stdout().print("\n".join(said), soft_wrap=True, markup=False)


def _write(run: str, report: CalibrationReport, *, save: bool, sglang: str | None) -> list[str]:
    """Store and export; a line for each file."""
    from pathlib import Path

    from deepspec.paths import DEMO
    from deepspec.redecoding import store_calibration
    from deepspec.resources import writing
    from deepspec.runs import write_json

    said = []
    if sglang is not None:
        with writing(Path(sglang), lambda: "choose another --sglang"):
            write_json(Path(sglang), report.sglang_temperatures())
        said.append(f"temperatures for SGLang: {sglang}")
    if save and run != DEMO:
        said.append(f"stored in {store_calibration(run, report.stored())}")
    elif save:
        said.append("not stored: the drafter that ships with DeepSpec stays as it is")
    return said


def _print(report: CalibrationReport) -> None:
    found = report.to_json()
    temperatures = found["temperatures"] or [None] * len(report.ece_after)

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def plain(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    columns = ("position", "T", "ECE % before", "after", "floor", "AUC", "of survival")
    rows = [
        (
            str(k + 1),
            plain(temperatures[k]),
            percent(report.ece_before[k]),
            percent(report.ece_after[k]),
            percent(report.ece_floor[k]),
            plain(report.auc_conditional[k]),
            plain(report.auc_survival_after[k]),
        )
        for k in range(len(report.ece_after))
    ]
    header = report.header
    stdout().print(
        f"{report.calibrator}, of {header.confidence} confidence, under the {header.verifier} rule at "
        f"temperature {header.temperature:g}: fitted to {report.num_fitted:,} rounds, measured on "
        f"{report.num_rounds:,}",
        soft_wrap=True,
        markup=False,
    )
    stdout().print(table(columns, rows))
