"""Options of the commands that read rows of any source."""

from __future__ import annotations

from typing import Annotated

import typer

SubsetFlag = Annotated[
    str | None, typer.Option("--subset", metavar="NAME", help="Which subset of a data set that has several.")
]
RenameFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--rename", metavar="OLD=NEW", help="Read a column by another name: question=prompt; repeatable."
    ),
]
ChatFlag = Annotated[
    bool, typer.Option("--chat", help="Put prompt and response through the chat template, as messages.")
]
