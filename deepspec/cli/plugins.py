"""``deepspec plugins``: what is installed and what each plugin registers; ``deepspec plugins new``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from deepspec.cli.console import JsonFlag, print_json, stdout, table

app = typer.Typer()

_WHAT_NEXT = """\
{folder} is a working plugin: a head, and the strategy {name} with it. To try it:
  cd {folder}
  pip install -e ".[test]"
  pytest
  deepspec check {name}
  deepspec train --strategy {name}
"""


@app.callback(invoke_without_command=True)
def plugins(context: typer.Context, *, json: JsonFlag = False) -> None:
    """List plugins with the strategies and parts they register; `new` writes one."""
    from deepspec.plugins import create_plugin_manager, describe_plugins

    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter("--json goes with the list of plugins, not with a subcommand")
        return None
    rows = describe_plugins(create_plugin_manager())
    if json:
        return print_json(rows)
    names = ("name", "distribution", "version")
    lists = ("strategies", "parts")
    cells = [
        [*(row[key] or "-" for key in names), *(", ".join(row[key]) or "-" for key in lists)] for row in rows
    ]
    return stdout().print(table(("plugin", *names[1:], *lists), cells))


@app.command("new")
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the plugin, its head and its strategy are called.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where to write it; deepspec-NAME by default."),
    ] = None,
) -> None:
    """Write a working plugin to start from: a head of its own, a strategy with it, and their tests."""
    from deepspec.new_plugin import new_plugin

    folder = new_plugin(name, out)
    typer.echo(_WHAT_NEXT.format(folder=shlex.quote(str(folder)), name=name), nl=False)
