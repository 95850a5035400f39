"""A checkpoint of another project: its header read as a layout, its tensors by our names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.errors import CheckpointError, ConfigError
from deepspec.formats.header import Header, read_header
from deepspec.formats.identify import identify
from deepspec.formats.layout import CheckpointFormat, Layout
from deepspec.formats.pairing import differs
from deepspec.formats.vocabulary import check_map
from deepspec.runs import read_json

if TYPE_CHECKING:
    from deepspec.strategy import Strategy
    from deepspec.target import Target


@dataclass(frozen=True)
class Foreign:
    """A checkpoint whose header was read."""

    header: Header
    format: CheckpointFormat
    seen: str
    layout: Layout


def read_foreign(name: str, what: str = "draft") -> Foreign:
    """Read a checkpoint's header and find its layout.

    Raises:
        TargetError: it cannot be read. CheckpointError: no known layout, or pickled. ConfigError: fields that
            contradict each other.
    """
    header = read_header(name, what)
    found, seen = identify(header)
    try:
        return Foreign(header, found, seen, found.read(header))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{what} {name!r}: its config.json is damaged: {reason}") from error


def is_foreign(name: str) -> bool:
    """Whether a name means another project's checkpoint and no run: a folder of a model, a hub id."""
    folder = Path(name)
    if folder.is_dir():
        config = folder / "config.json"
        return config.is_file() and "strategy" not in read_json(config)
    return not folder.exists() and name.count("/") == 1 and not name.startswith((".", "/", "runs/"))


def read_weights(
    foreign: Foreign, target: Target, *, own: Collection[str] = ()
) -> tuple[Strategy, dict[str, Tensor], dict[str, torch.dtype]]:
    """Strategy and tensors by our names, and what each of the file's is stored in.

    A copy of a target's tensor that differs from it is the drafter's own, where the layout has such;
    one that is to be its own by the options ``own`` is in any case.
    """
    header, layout = foreign.header, foreign.layout
    copies = {copy.tensor: copy for copy in layout.copies if copy.tensor in header.files}
    names = [name for name in header.files if name.startswith(layout.within)]
    unknown = [
        name for name in names if not (layout.table.knows(name) or name in copies or name in layout.ignored)
    ]
    if unknown:
        listed = ", ".join(sorted(unknown)[:3])
        raise CheckpointError(
            f"draft {header.name!r} has {len(unknown)} tensors that the layout {foreign.format.name} does "
            "not know: "
            f"{listed}"
        )
    tensors = header.tensors(names)
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    ids = None
    if "d2t" in tensors:
        check_map(f"draft {header.name!r}", tensors["d2t"], tensors.get("t2d"), target.info.vocab_size)
        ids = tensors["d2t"].long() + torch.arange(len(tensors["d2t"]))
    options = {}
    for name, copy in copies.items():
        fault = differs(tensors[name], copy, target, ids)
        if fault is None and copy.option not in own:
            del tensors[name]
        elif copy.option is None or tensors[name].shape[-1] != target.info.hidden_size:
            raise ConfigError(_other_target(foreign, name, str(fault), target))
        else:
            options[copy.option] = True
    strategy = layout.strategy.replace(drafter=options) if options else layout.strategy
    return strategy, layout.table.to_ours(tensors), dtypes


def _other_target(foreign: Foreign, name: str, fault: str, target: Target) -> str:
    return (
        f"draft {foreign.header.name!r} is another target's: its {name} is a copy of its target's, and "
        f"{target.name!r} {fault}; give the --target that it was trained for"
    )
