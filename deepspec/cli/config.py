"""``deepspec config show`` and ``deepspec config schema``."""

from __future__ import annotations

import json as json_module

import typer

from deepspec.cli.console import ConfigFlag, JsonFlag, SetFlag, StrategyFlag, print_json, stdout, table

app = typer.Typer(help="Show the settings of a run and where each comes from.", no_args_is_help=True)


@app.command("show")
def show(
    *, strategy: StrategyFlag = None, config: ConfigFlag = None, set_: SetFlag = None, json: JsonFlag = False
) -> None:
    """Every setting with its value and origin: default, strategy, file or flag."""
    from deepspec.layers import resolve

    leaves = resolve(strategy, file=config, sets=set_ or ()).leaves()
    if json:
        return print_json([{"key": key, "value": value, "origin": origin} for key, value, origin in leaves])
    rows = [(key, json_module.dumps(value, ensure_ascii=False), origin) for key, value, origin in leaves]
    return stdout().print(table(("key", "value", "origin"), rows))


@app.command("schema")
def schema(*, json: JsonFlag = False) -> None:
    """The JSON schema of a configuration file (always JSON)."""
    from deepspec.config import RunConfig

    print_json(RunConfig.model_json_schema())
