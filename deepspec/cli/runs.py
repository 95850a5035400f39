"""``deepspec runs``: the run folders and the accepted length each has reached."""

from __future__ import annotations

from typing import Annotated

import typer

from deepspec.cli.console import JsonFlag, print_json, stdout, table


def runs(
    root: Annotated[
        str | None, typer.Argument(metavar="FOLDER", help="The folder that holds runs; runs/ by default.")
    ] = None,
    *,
    json: JsonFlag = False,
) -> None:
    """List runs with strategy, target, last step and accepted length."""
    from pathlib import Path

    from deepspec.errors import ConfigError
    from deepspec.paths import runs_root
    from deepspec.runs import list_runs

    folder = Path(root) if root else runs_root()
    if root and not folder.is_dir():
        raise ConfigError(
            f"{root}: no such folder; give one that holds run folders, or none for {runs_root()}/"
        )
    found = list_runs(folder)
    if json:
        return print_json(
            [
                {
                    "name": run.name,
                    "strategy": run.strategy,
                    "target": run.target,
                    "step": run.step,
                    "accepted_length": run.tau,
                    "path": str(run.path),
                }
                for run in found
            ]
        )
    if not found:
        return stdout().print(
            f"no runs in {folder}/; `deepspec train --strategy NAME` makes one", markup=False
        )
    rows = [
        (str(run.path), run.strategy, run.target, str(run.step), "-" if run.tau is None else f"{run.tau:.3f}")
        for run in found
    ]
    return stdout().print(table(("run", "strategy", "target", "step", "τ"), rows))
