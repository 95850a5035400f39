"""``deepspec plugins``: what is installed and what each plugin registers."""

from __future__ import annotations

from deepspec.cli.console import JsonFlag, print_json, stdout, table


def plugins(*, json: JsonFlag = False) -> None:
    """List plugins with the strategies and parts they register."""
    from deepspec.plugins import create_plugin_manager, describe_plugins

    rows = describe_plugins(create_plugin_manager())
    if json:
        return print_json(rows)
    names = ("name", "distribution", "version")
    lists = ("strategies", "parts")
    cells = [
        [*(row[key] or "-" for key in names), *(", ".join(row[key]) or "-" for key in lists)] for row in rows
    ]
    return stdout().print(table(("plugin", *names[1:], *lists), cells))
