"""``deepspec inspect``: which layout a checkpoint has, what breaks silently, and who can load it."""

from __future__ import annotations

from typing import Annotated

import typer

from deepspec.cli.console import JsonFlag, print_json, stdout, table


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder, or a hub name.")],
    *,
    json: JsonFlag = False,
) -> None:
    """Say which layout a draft checkpoint has, and which engines can load it."""
    from deepspec.formats.inspect import inspect_checkpoint

    found = inspect_checkpoint(path)
    if json:
        return print_json(found.to_json())
    stdout().print(f"{found.layout}, by {found.seen}", markup=False, soft_wrap=True)
    stdout().print(table(("", ""), found.facts.items()))
    columns = ("engine", "loads it", "why, or how")
    words = {True: "yes", False: "no", None: "untried"}
    rows = [
        (one.engine, words[one.loads], "; ".join(part for part in (one.why, one.command) if part))
        for one in found.engines
    ]
    return stdout().print(table(columns, rows))
