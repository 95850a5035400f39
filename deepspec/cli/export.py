"""``deepspec export``: write a drafter in another project's layout, and on request put it on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.cli.console import (
    DeviceFlag,
    JsonFlag,
    QuietFlag,
    TrustFlag,
    VerboseFlag,
    print_json,
    set_up_logging,
    stdout,
)
from deepspec.cli.subject import DraftFlag, OptionFlag, RunArgument, open_subject

if TYPE_CHECKING:
    from deepspec.formats.export import Exported


def export(
    run: RunArgument = None,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="NAME", help="deepspec, speculators, sglang, vllm, modelopt, or a plugin's."
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Where to write it; must not exist.")],
    draft: DraftFlag = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="With --draft: `demo`, a hub name, a folder."),
    ] = None,
    target_name: Annotated[
        str | None,
        typer.Option("--target-name", metavar="NAME", help="What those who serve it call the target."),
    ] = None,
    set_: OptionFlag = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="NAME", help="float32, bfloat16 or float16; as stored by default."),
    ] = None,
    sps: Annotated[
        str | None, typer.Option("--sps", metavar="FILE", help="An SPS curve to write beside it, for SGLang.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Then upload it to the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: as a private model.")] = False,
    device: DeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Write a run's drafter, or another project's, in a layout that others read."""
    set_up_logging(quiet=quiet, verbose=verbose)
    from pathlib import Path

    from deepspec.formats import push as hub
    from deepspec.formats.export import check_export, export

    kind = check_export(to, Path(out), dtype)
    if push is not None:
        hub.check_login(push)
    subject = open_subject(
        run,
        None,
        draft=draft,
        target=target,
        sets=set_,
        device=device,
        target_device=None,
        trust_remote_code=trust_remote_code,
    )
    found = export(
        subject, to, Path(out), dtype=kind, target_name=target_name, sps=None if sps is None else Path(sps)
    )
    address = None if push is None else hub.push(found.folder, push, private=private)
    if json:
        return print_json({**found.to_json(), "pushed": address})
    return _print(found, address)


def _print(found: Exported, address: str | None) -> None:
    stdout().print(
        f"{found.format} in {found.folder}: {', '.join(found.files)}", markup=False, soft_wrap=True
    )
    for engine, line in found.commands.items():
        stdout().print(f"{engine}: {line}", markup=False, soft_wrap=True)
    if address is not None:
        stdout().print(f"uploaded: {address}", markup=False, soft_wrap=True)
