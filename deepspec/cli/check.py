"""``deepspec check``: whether a strategy or part keeps the target's law, property by property."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deepspec.cli.console import JsonFlag, print_json, stdout, table

if TYPE_CHECKING:
    from deepspec.exact.report import Report

_WIDTH = 80


def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A strategy or part that `deepspec plugins` lists, or KIND:NAME."
        ),
    ],
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a strategy, as in head.type=rnn; repeatable."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Prove on tiny targets that a strategy or part keeps the output's law; exit code 1 when it does not."""
    from deepspec.exact.check import check as run
    from deepspec.layers import parse_sets

    report = run(name, changes=parse_sets(set_ or ()))
    if json:
        print_json(report.to_json())
    else:
        stdout().print(_table(report))
    if not report.passed:
        raise typer.Exit(1)


def _table(report: Report) -> Table:
    rows = [
        (found.name, "passed" if found.passed else "FAILED", _error(found.max_error), found.detail)
        for found in report.properties
    ]
    made = table((report.strategy, "", "error", "what was found"), rows)
    made.width = _WIDTH
    return made


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"
