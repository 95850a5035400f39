"""``deepspec data regenerate``: have the target itself write the answers to a source's prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepspec.cli.console import (
    DeviceFlag,
    JsonFlag,
    QuietFlag,
    TargetDeviceFlag,
    TrustFlag,
    VerboseFlag,
    print_json,
    set_up_logging,
    stderr,
    stdout,
)
from deepspec.cli.sources import ChatFlag, RenameFlag, SubsetFlag
from deepspec.paths import DEMO

if TYPE_CHECKING:
    from deepspec.regenerate import RegenerationReport
    from deepspec.regenerate.samples import LeftOutKind, Writer
    from deepspec.runs import Run
    from deepspec.sampling import SamplingParams
    from deepspec.target import Target


def regenerate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="JSONL, JSON or Parquet files, folders, globs; or Hugging Face data sets, NAME[:SPLIT].",
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="JSONL to write, or to go on with after a stop.")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Who writes: `demo`, a Hugging Face name, a folder."),
    ] = None,
    target_revision: Annotated[
        str | None, typer.Option("--target-revision", metavar="REV", help="Commit, branch or tag.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="RUN", help="Instead, a run: its target writes, its drafter helps."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help="Instead, an OpenAI-compatible server (vLLM, SGLang)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="With --server: which model, if it serves several."),
    ] = None,
    body: Annotated[
        list[str] | None,
        typer.Option(
            "--body",
            metavar="KEY=VALUE",
            help="With --server: more for each request's body; repeatable.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.001, help="With --server: seconds for an answer.")
    ] = 600.0,
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", min=0, help="With --server: of a request that fails.")
    ] = 6,
    subset: SubsetFlag = None,
    rename: RenameFlag = None,
    chat: ChatFlag = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Read the first N rows alone.")
    ] = None,
    text_characters: Annotated[
        int,
        typer.Option("--text-characters", min=1, metavar="N", help="Of running text, given as the prompt."),
    ] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="1 is off.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", min=0.0, max=1.0, help="0 is off.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of all sampling.")] = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="New tokens of a turn at most.")
    ] = 1024,
    max_positions: Annotated[
        int | None,
        typer.Option(
            "--max-positions",
            min=2,
            metavar="N",
            help="Of a whole text, not with --server; 2,048 or the target's limit by default.",
        ),
    ] = None,
    drop_cut: Annotated[
        bool, typer.Option("--drop-cut", help="Leave out what --max-tokens or the positions cut off.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, metavar="N", help="Samples written at once.")
    ] = 32,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Have the target write training text: answers to the prompts of any source.

    The same command goes on after any stop; exit code 1 when samples failed.
    """
    set_up_logging(quiet=quiet, verbose=verbose)
    from deepspec.cli.progress import RegenerationProgress
    from deepspec.data.forms import Columns, parse_renames
    from deepspec.regenerate import Regeneration
    from deepspec.regenerate import regenerate as run
    from deepspec.sampling import SamplingParams

    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_tokens=max_tokens
    )
    columns = Columns(parse_renames(rename or []), as_chat=chat)
    given = {
        "--target": target,
        "--target-revision": target_revision,
        "--draft": draft,
        "--server": server,
        "--model": model,
        "--body": body,
        "--max-positions": max_positions,
    }
    _check_together({name for name, value in given.items() if value is not None})
    if server is not None:
        patience = {"timeout_s": timeout, "retries": retries}
        writer = _server(server, model, body or [], params, patience, concurrency=concurrency)
    else:
        places = {"device": device, "target_device": target_device}
        writer = _engine(
            target,
            target_revision,
            draft,
            params,
            places,
            concurrency=concurrency,
            max_positions=max_positions,
            trust_remote_code=trust_remote_code,
        )
    plan = Regeneration(
        sources=tuple(sources),
        out=out,
        columns=columns,
        subset=subset,
        limit=limit,
        text_characters=text_characters,
        drop_cut=drop_cut,
    )
    with RegenerationProgress(stderr(), quiet=quiet) as progress:
        report = run(plan, writer, observer=progress)
    if json:
        print_json(report.to_json())
    else:
        stdout().print("\n".join(_lines(report)), markup=False, soft_wrap=True)
    if report.num_failed:
        raise typer.Exit(1)


#: Options that go with one way to write alone.
_OF_SERVER = ("--model", "--body")
_OF_ENGINE = ("--target", "--target-revision", "--draft", "--max-positions")


def _check_together(given: set[str]) -> None:
    """Raise ConfigError when options were given that exclude each other."""
    from deepspec.errors import ConfigError

    clash = [name for name in (_OF_ENGINE if "--server" in given else _OF_SERVER) if name in given]
    if clash:
        fits = "does not go" if "--server" in given else "goes"
        raise ConfigError(f"{clash[0]} {fits} with --server URL, which has another process write")
    if {"--target", "--draft"} <= given:
        raise ConfigError(
            "--target and --draft were both given; a run has its own target: give one of the two"
        )


def _server(
    address: str,
    model: str | None,
    body: list[str],
    params: SamplingParams,
    patience: dict[str, Any],
    *,
    concurrency: int,
) -> Writer:
    from deepspec.layers import parse_sets
    from deepspec.regenerate import Server, ServerWriter
    from deepspec.regenerate.client import Patience

    found = Server.at(address, model, extra=parse_sets(body), patience=Patience(**patience))
    return ServerWriter(found, params, concurrency=concurrency)


def _engine(
    target: str | None,
    revision: str | None,
    draft: str | None,
    params: SamplingParams,
    places: dict[str, str | None],
    *,
    concurrency: int,
    max_positions: int | None,
    trust_remote_code: bool,
) -> Writer:
    from deepspec.config import TargetConfig
    from deepspec.regenerate import EngineWriter
    from deepspec.runs import load
    from deepspec.target import load_target

    if draft is not None:
        source: Run | Target = load(
            draft,
            device=places["device"],
            target_device=places["target_device"],
            trust_remote_code=trust_remote_code,
        )
    else:
        config = TargetConfig(
            name=target or DEMO,
            revision=revision,
            device=places["target_device"],
            trust_remote_code=trust_remote_code,
        )
        source = load_target(config, device=places["device"])
    return EngineWriter(source, params, concurrency=concurrency, max_positions=max_positions)


def _lines(report: RegenerationReport) -> list[str]:
    """What was done, and what to do next."""
    words: dict[LeftOutKind, str] = {
        "cut": "cut off",
        "empty": "empty",
        "unusable": "cannot be used",
        "failed": "FAILED",
    }
    before = f", done before: {report.num_before:,}" if report.num_before else ""
    cut = f", {report.num_cut:,} of them cut off" if report.num_cut else ""
    lines = [f"samples written: {report.num_written:,} ({report.num_tokens:,} tokens{cut}){before}"]
    for kind, word in words.items():
        if kind in report.left_out:
            lines.append(f"{word}: {report.left_out[kind]:,}, the first: {report.reasons[kind]}")
    if report.num_unusable_rows:
        lines.append(f"rows that ask nothing: {report.num_unusable_rows:,}, the first: {report.problem}")
    if report.num_failed:
        lines.append(f"why is in {report.file}.left-out; the same command tries those that failed again")
    else:
        lines.append(f"check and split it: deepspec data prepare {report.file} --out prepared")
    return lines
