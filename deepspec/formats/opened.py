"""Another project's checkpoint as a drafter of ours, put on its target; wrong pairings are refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepspec.composed import Composed
from deepspec.config import RunConfig, TargetConfig
from deepspec.errors import CheckpointError, ConfigError
from deepspec.formats.header import Header, read_header
from deepspec.formats.identify import identify
from deepspec.formats.layout import CheckpointFormat, Layout, SharedCopy
from deepspec.formats.pairing import check_claim, differs
from deepspec.formats.vocabulary import check_map
from deepspec.redecoding import check_changes, redecoded
from deepspec.runs import read_json
from deepspec.target import load_target
from deepspec.target.load import resolve_device
from deepspec.train.assemble import assemble
from deepspec.train.checkpoint import fit_weights, summary

if TYPE_CHECKING:
    from deepspec.strategy import Parts, Strategy
    from deepspec.target import Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a drafter's weights are from.

    Attributes:
        name: of the checkpoint. format: its layout's name. fields: its config.json.
        dtypes: what each of its tensors is stored in. copies: those that are copies of the target's.
    """

    name: str
    format: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    copies: tuple[SharedCopy, ...] = ()


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


def open_draft(
    name: str,
    *,
    target: str | Target | None = None,
    device: str | None = None,
    target_device: str | None = None,
    trust_remote_code: bool = False,
    changes: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Composed:
    """Load another project's checkpoint with its target.

    Args:
        name: a folder or hub model. target: the model that it drafts for, or its name; None: as it says.
        device, target_device, trust_remote_code, changes: as :func:`deepspec.load` has them.
        dtype: of the drafter's weights; the target's when None.

    Raises:
        CheckpointError: it cannot be read as a drafter. ConfigError: it is not for this target.
        TargetError: checkpoint or target cannot be had.
    """
    foreign = read_foreign(name)
    place = resolve_device(device)
    settings = TargetConfig(
        name=_target_name(foreign, target), device=target_device, trust_remote_code=trust_remote_code
    )
    model = load_target(settings, device=str(place)) if isinstance(target, str | None) else target
    parts, origin = load_parts(foreign, model, device=place, dtype=dtype or model.dtype)
    parts = redecoded(parts, **check_changes(changes or {}))
    parts.modules().eval()
    return Composed(RunConfig(strategy=parts.strategy, target=settings), model, parts, origin)


def load_parts(
    foreign: Foreign, target: Target, *, device: torch.device, dtype: torch.dtype
) -> tuple[Parts, Origin]:
    """The drafter with its weights, and where they are from; raises as :func:`open_draft`."""
    header, layout = foreign.header, foreign.layout
    check_claim(header, layout.claim, target)
    strategy, weights, dtypes = read_weights(foreign, target)
    parts = assemble(strategy, target, device=device, dtype=dtype, seed=0)
    if misfits := fit_weights(weights, parts):
        raise CheckpointError(
            f"draft {header.name!r} has not the tensors that its config.json tells of: {summary(misfits)}"
        )
    copies = tuple(copy for copy in layout.copies if copy.tensor in dtypes)
    return parts, Origin(header.name, foreign.format.name, layout.fields, dtypes, copies)


def read_weights(
    foreign: Foreign, target: Target
) -> tuple[Strategy, dict[str, Tensor], dict[str, torch.dtype]]:
    """Strategy and tensors by our names, and what each of the file's is stored in.

    A copy of a target's tensor that differs from it is the drafter's own, where the layout has such.
    """
    header, layout = foreign.header, foreign.layout
    copies = {copy.tensor: copy for copy in layout.copies if copy.tensor in header.files}
    unknown = [
        name
        for name in header.files
        if not (layout.table.knows(name) or name in copies or name in layout.ignored)
    ]
    if unknown:
        names = ", ".join(sorted(unknown)[:3])
        raise CheckpointError(
            f"draft {header.name!r} has {len(unknown)} tensors that the layout {foreign.format.name} does "
            "not know: "
            f"{names}"
        )
    tensors = header.tensors(header.files)
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    ids = None
    if "d2t" in tensors:
        check_map(f"draft {header.name!r}", tensors["d2t"], tensors.get("t2d"), target.info.vocab_size)
        ids = tensors["d2t"].long() + torch.arange(len(tensors["d2t"]))
    options = {}
    for name, copy in copies.items():
        fault = differs(tensors[name], copy, target, ids)
        if fault is None:
            del tensors[name]
        elif copy.option is None or tensors[name].shape[-1] != target.info.hidden_size:
            raise ConfigError(_other_target(foreign, name, fault, target))
        else:
            options[copy.option] = True
    strategy = layout.strategy.replace(drafter=options) if options else layout.strategy
    return strategy, layout.table.to_ours(tensors), dtypes


def stored_dtype(origin: Origin) -> torch.dtype:
    """What most of a checkpoint's weights are stored in."""
    kinds = Counter(kind for kind in origin.dtypes.values() if kind.is_floating_point)
    return kinds.most_common(1)[0][0]


def _target_name(foreign: Foreign, target: str | Target | None) -> str:
    claimed = foreign.layout.claim.name
    if target is None:
        if claimed is None:
            raise ConfigError(f"draft {foreign.header.name!r} does not name its target; give --target NAME")
        return claimed
    given = target if isinstance(target, str) else target.name
    if claimed is not None and claimed != given:
        logger.warning(
            "draft %s names %s as its target, and %s was given", foreign.header.name, claimed, given
        )
    return given


def _other_target(foreign: Foreign, name: str, fault: str, target: Target) -> str:
    return (
        f"draft {foreign.header.name!r} is another target's: its {name} is a copy of its target's, and "
        f"{target.name!r} {fault}; give the --target that it was trained for"
    )
