"""The ``deepspec`` command; one file a subcommand, each of which imports what is heavy when it runs.

Exit codes: 0 success, 1 a failed run or check, 2 bad input. Errors are one line on standard error; with
``--json`` standard output holds exactly one JSON document.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from deepspec.cli import (
    calibrate,
    check,
    compare,
    config,
    data,
    doctor,
    evaluate,
    export,
    features,
    generate,
    inspect,
    plugins,
    profile,
    report,
    runs,
    serve_check,
    simulate,
    train,
)
from deepspec.cli.failures import report_failures

app = typer.Typer(
    name="deepspec",
    help="Train and evaluate draft models for speculative decoding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


#: What several processes can do together.
_SHARED = ("train", "eval", "features")


def _version(value: bool) -> None:
    if value:
        from deepspec import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    from deepspec.distributed import of_environment
    from deepspec.errors import ConfigError

    command = context.invoked_subcommand
    if command not in _SHARED and not of_environment().is_alone:
        raise ConfigError(
            f"`deepspec {command}` is one process's work; start it without torchrun (several share that of "
            f"{', '.join(_SHARED)})"
        )


app.command("train")(train.train)
app.command("features")(features.features)
app.command("eval")(evaluate.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("compare")(compare.compare)
app.command("generate")(generate.generate)
app.command("profile")(profile.profile)
app.command("report")(report.report)
app.command("simulate")(simulate.simulate)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.command("serve-check")(serve_check.serve_check)
app.command("check")(check.check)
app.command("runs")(runs.runs)
app.add_typer(plugins.app, name="plugins")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(report_failures(app, arguments))
