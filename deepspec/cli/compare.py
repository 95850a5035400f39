"""``deepspec compare``: several drafters of one target on the same prompts."""

from __future__ import annotations

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
    check_file,
    given_settings,
    joined,
)


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders of one target, or `demo`.")
    ],
    *,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="Beside the runs, a strategy that needs no training; repeatable.",
        ),
    ] = None,
    tasks: TasksFlag = None,
    task_file: TaskFileFlag = None,
    temperature: TemperatureFlag = None,
    batch: BatchFlag = None,
    num_prompts: NumPromptsFlag = None,
    max_tokens: MaxTokensFlag = None,
    seed: SeedFlag = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Also write a page that needs no other file.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FOLDER", help="Also write comparison.json, .png and .html there."),
    ] = None,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Measure drafters of one target on the same prompts, timed by turns."""
    set_up_logging(quiet=quiet, verbose=verbose)
    import deepspec
    from deepspec import Strategy
    from deepspec.report.tables import comparison_tables
    from deepspec.runs import load_all

    given = given_settings(
        tasks,
        task_file,
        temperature=temperature,
        batch=batch,
        num_prompts=num_prompts,
        max_tokens=max_tokens,
        seed=seed,
    )
    _check_places(html, out)
    untrained = [Strategy.named(name) for name in strategy or ()]
    loaded = load_all(runs, device=device, target_device=target_device, trust_remote_code=trust_remote_code)
    found = deepspec.compare(
        [*loaded, *untrained],
        tasks=given.get("tasks"),
        task_files=task_file or (),
        config=joined(loaded[0].config.eval, given),
    ).to_json()
    _write(found, html, out)
    if json:
        return print_json(found)
    for one in comparison_tables(found):
        stdout().print(f"\n{one.title}", markup=False)
        stdout().print(table(one.columns, one.rows))
    return None


def _check_places(html: str | None, out: str | None) -> None:
    """Raise ConfigError, before anything is measured, where files cannot go."""
    from pathlib import Path

    from deepspec.errors import ConfigError

    if html:
        check_file("--html", html)
    if out and Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out}: is a file; give a folder")


def _write(found: dict[str, Any], html: str | None, out: str | None) -> None:
    """The page, and the folder with everything, where they were asked for."""
    from pathlib import Path

    from deepspec.report.page import comparison_html
    from deepspec.report.plots import comparison_png
    from deepspec.resources import writing
    from deepspec.runs import write_json

    if not (html or out):
        return
    png = comparison_png(found)
    page = comparison_html(found, png)
    if html:
        with writing(Path(html), lambda: "choose another --html"):
            Path(html).write_text(page, encoding="utf-8")
    if out:
        folder = Path(out)
        with writing(folder, lambda: "choose another --out"):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "comparison.json", found)
            (folder / "comparison.png").write_bytes(png)
            (folder / "comparison.html").write_text(page, encoding="utf-8")
