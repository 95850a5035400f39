"""``deepspec data prepare`` and ``deepspec data show``."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.cli import regenerate
from deepspec.cli.console import (
    JsonFlag,
    QuietFlag,
    TrustFlag,
    VerboseFlag,
    print_json,
    set_up_logging,
    stdout,
    table,
)
from deepspec.cli.sources import ChatFlag, RenameFlag, SubsetFlag
from deepspec.paths import DEMO

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from deepspec.data.report import DataReport, PartReport
    from deepspec.data.show import ShownDocument

app = typer.Typer(
    help="Have a target write training text, prepare it, show what is learned of it.", no_args_is_help=True
)
app.command("regenerate")(regenerate.regenerate)

TargetFlag = Annotated[
    str,
    typer.Option("--target", metavar="NAME", help="Whose tokenizer: `demo`, a Hugging Face name, a folder."),
]
RevisionFlag = Annotated[
    str | None, typer.Option("--target-revision", metavar="REV", help="Commit, branch or tag.")
]


class FileFormat(StrEnum):
    """What examples are written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command("prepare")
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="JSONL, JSON or Parquet files, folders, globs; or Hugging Face data sets, NAME[:SPLIT].",
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where to write it, for `train --data`.")
    ],
    target: TargetFlag = DEMO,
    target_revision: RevisionFlag = None,
    subset: SubsetFlag = None,
    rename: RenameFlag = None,
    chat: ChatFlag = False,
    file_format: Annotated[FileFormat, typer.Option("--format", help="What to write.")] = FileFormat.JSONL,
    held_out: Annotated[
        float, typer.Option("--held-out", metavar="SHARE", help="Share of prompts to validate on; 0 is none.")
    ] = 0.02,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the split.")] = 0,
    sequence_length: Annotated[
        int,
        typer.Option(
            "--sequence-length", min=8, metavar="N", help="Of training rows; longer documents are counted."
        ),
    ] = 256,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Leave out longer examples.")
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep examples whose prompt came before.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Stop at the first row that cannot be used."),
    ] = False,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Make training text of any data: checked, split, without repeated prompts.

    Rows have messages, conversations, turns, prompt with response, or text.
    """
    set_up_logging(quiet=quiet, verbose=verbose)
    from deepspec.data.forms import Columns, parse_renames
    from deepspec.data.prepare import Preparation, prepare_data
    from deepspec.data.report import report_json

    columns = Columns(parse_renames(rename or []), as_chat=chat)
    plan = Preparation(
        sources=tuple(sources),
        out=out,
        target=target,
        columns=columns,
        subset=subset,
        file_format=file_format.value,
        held_out_fraction=held_out,
        seed=seed,
        sequence_length=sequence_length,
        max_tokens=max_tokens,
        keep_duplicates=keep_duplicates,
        is_strict=strict,
    )
    report = prepare_data(plan, _tokenizer(target, target_revision, trust_remote_code=trust_remote_code))
    if json:
        return print_json(report_json(report))
    return _print_report(report, plan.out, sequence_length)


@app.command("show")
def show(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A file, folder or glob, or a data set, NAME[:SPLIT]."),
    ],
    *,
    target: TargetFlag = DEMO,
    target_revision: RevisionFlag = None,
    subset: SubsetFlag = None,
    rename: RenameFlag = None,
    chat: ChatFlag = False,
    first: Annotated[int, typer.Option("--first", min=1, metavar="N", help="Row to begin with, from 1.")] = 1,
    num: Annotated[int, typer.Option("--num", min=1, metavar="N", help="Rows to show.")] = 1,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Print the tokens of training text and which are supervised."""
    set_up_logging(verbose=verbose)
    from dataclasses import asdict

    from deepspec.data.forms import Columns, parse_renames
    from deepspec.data.show import show_example
    from deepspec.data.sources import read_sources
    from deepspec.errors import DataError

    columns = Columns(parse_renames(rename or []), as_chat=chat)
    rows = list(islice(read_sources([source], subset=subset), first - 1, first - 1 + num))
    if not rows:
        raise DataError(f"{source} has no row {first}; give a smaller --first")
    tokenizer = _tokenizer(target, target_revision, trust_remote_code=trust_remote_code)
    shown = [
        document
        for where, row in rows
        for document in show_example(columns.example(row, where)[0], tokenizer)
    ]
    if json:
        return print_json({"schema": 1, "target": target, "documents": [asdict(one) for one in shown]})
    return _print_documents(shown)


def _tokenizer(target: str, revision: str | None, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from deepspec.config import TargetConfig
    from deepspec.target.load import load_tokenizer

    return load_tokenizer(TargetConfig(name=target, revision=revision, trust_remote_code=trust_remote_code))


def _print_report(report: DataReport, out: Path, sequence_length: int) -> None:
    console = stdout()
    parts = [part for part in (report.train, report.held_out) if part is not None]
    columns = [_numbers(part) for part in parts]
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in columns[0]]
    console.print(table(("", *(part.file for part in parts)), rows))
    left_out = f"{report.num_duplicates} repeated prompts, {report.num_unusable} that cannot be used"
    lines = [f"{report.num_rows} rows read; left out: {left_out}"]
    lines += [f"  {problem}" for problem in report.problems]
    if report.ignored_columns:
        lines.append(f"columns that were not read: {', '.join(report.ignored_columns)}")
    if cut := sum(part.num_cut for part in parts):
        lines.append(f"documents longer than a row of {sequence_length} tokens, which will be cut: {cut:,}")
    lines.append(f"train on it: deepspec train --data {out}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _numbers(part: PartReport) -> dict[str, str]:
    """What is said of a file, by name."""
    found = {"examples": f"{part.num_examples:,}", "documents": f"{part.num_documents:,}"}
    if part.tokens is not None and part.supervised is not None:
        found |= {"tokens": f"{part.tokens.total:,}", "supervised": f"{part.supervised.total:,}"}
        found |= {
            f"{name} length": f"{getattr(part.tokens, name):,.0f}"
            for name in ("mean", "shortest", "p50", "p90", "p99", "longest")
        }
    return found


def _print_documents(shown: list[ShownDocument]) -> None:
    """Colours where there are any, else marks: «supervised»; a bar between tokens."""
    from rich.text import Text

    console = stdout()
    is_coloured = console.is_terminal and not console.no_color
    pieces = _coloured if is_coloured else _marked
    legend = Text("«supervised» context, one│two tokens, ⏎ line break")
    if is_coloured:
        legend = Text.assemble(("supervised", "bold green"), " context, one", ("two", "underline"), " tokens")
    console.print(legend)
    for document in shown:
        head = f"{document.source}: {len(document.tokens)} tokens, {document.num_supervised} supervised"
        console.print(Text(f"\n{head}"), soft_wrap=True)
        if document.problem:
            console.print(
                Text(f"the mask does not fit the chat template: {document.problem}"), soft_wrap=True
            )
        tokens = [(_visible(token.text), token.supervised) for token in document.tokens]
        console.print(_folded(pieces(tokens), console.width), soft_wrap=True)


def _coloured(tokens: list[tuple[str, bool]]) -> list[tuple[str, str]]:
    """Text and style of each token; every second one is underlined, so that each can be told apart."""
    styles = {True: ("bold green", "bold green underline"), False: ("", "underline")}
    return [(text, styles[supervised][number % 2]) for number, (text, supervised) in enumerate(tokens)]


def _marked(tokens: list[tuple[str, bool]]) -> list[tuple[str, str]]:
    """Text of each token with a bar before it, or what opens and closes a supervised run."""
    made, was = [], False
    for number, (text, supervised) in enumerate(tokens):
        bar = "" if number == 0 or tokens[number - 1][0].endswith("\n") else "│"
        edge = ("«" if supervised else "»") if supervised != was else bar
        made.append((edge + text, ""))
        was = supervised
    return [*made, ("»", "")] if was else made


def _folded(pieces: list[tuple[str, str]], width: int) -> Text:
    """Pieces one after the other, on a new line where the next one does not fit whole."""
    from rich.cells import cell_len
    from rich.text import Text

    made, column = Text(), 0
    for text, style in pieces:
        first, *rest = text.split("\n")
        if column and column + cell_len(first) > width:
            made.append("\n")
            column = 0
        made.append(text, style)
        column = cell_len(rest[-1]) if rest else column + cell_len(first)
    return made


def _visible(text: str) -> str:
    """A token's text with its line breaks to be seen, and something where there is none."""
    return text.replace("\n", "⏎\n") or "∅"
