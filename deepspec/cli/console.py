"""What every command shares: the two consoles, JSON on standard output, and where logs go.

Results go to standard output, progress and logs to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table
from rich.text import Text

from deepspec.distributed import of_environment

#: Wide enough that tables are not cut where nobody sees a terminal.
_PIPE_WIDTH = 160

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors and the result.")]
VerboseFlag = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for all.")]
DeviceFlag = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda:1, mps; the best there is by default."),
]
TargetDeviceFlag = Annotated[
    str | None, typer.Option("--target-device", metavar="NAME", help="Where the target runs, if elsewhere.")
]
TrustFlag = Annotated[bool, typer.Option("--trust-remote-code", help="Let the target's own Python code run.")]
SetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any value, as in head.rank=64; repeatable."),
]
ConfigFlag = Annotated[str | None, typer.Option("--config", metavar="FILE", help="A TOML or YAML file.")]
StrategyFlag = Annotated[
    str | None,
    typer.Option("--strategy", metavar="NAME", help="A composition that `deepspec plugins` lists."),
]


def stdout() -> Console:
    """For results."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def stderr() -> Console:
    """For progress and logs."""
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_WIDTH)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table whose cells are shown as they are (brackets are no markup) and whole."""
    made = Table(*(Column(name, overflow="fold") for name in columns), box=None, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def print_json(value: Any) -> None:
    """The one JSON document of a ``--json`` run."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def set_up_logging(*, quiet: bool = False, verbose: int = 0) -> None:
    """DeepSpec's logs to standard error, other libraries' warnings with ``-v``, errors alone with ``-q``.

    Of several processes only the main one logs more than errors.
    """
    if not verbose:
        for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
            os.environ.setdefault(name, "error")  # they keep their own loggers; a user's setting wins
    quiet = quiet or not of_environment().is_main
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():  # passes through rich, so that a line does not break a progress bar
        handler = RichHandler(console=stderr(), show_time=False, show_path=False, show_level=bool(verbose))
    handler.setFormatter(logging.Formatter("%(message)s"))
    others = logging.INFO if verbose > 1 else logging.WARNING if verbose else logging.ERROR
    logging.basicConfig(level=others, handlers=[handler], force=True)
    logging.getLogger("deepspec").setLevel(level)
    logging.captureWarnings(True)
