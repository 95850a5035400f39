"""Another project's checkpoint as a drafter of ours, put on its target; wrong pairings are refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from deepspec.composed import Composed
from deepspec.config import RunConfig, TargetConfig
from deepspec.errors import CheckpointError, ConfigError
from deepspec.formats.foreign import Foreign, read_foreign, read_weights
from deepspec.formats.layout import SharedCopy, norm_factors
from deepspec.formats.pairing import check_claim
from deepspec.redecoding import check_changes, redecoded
from deepspec.target import load_target
from deepspec.target.load import resolve_device
from deepspec.train.assemble import assemble
from deepspec.train.checkpoint import fit_weights, summary

if TYPE_CHECKING:
    from deepspec.strategy import Parts
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
    given = dict(changes or {})
    if not foreign.layout.sets_length and "draft_length" in given:
        foreign = _of_length(foreign, given.pop("draft_length"))
    parts, origin = load_parts(foreign, model, device=place, dtype=dtype or model.dtype)
    parts = redecoded(parts, **check_changes(given))
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
    if misfits := fit_weights(norm_factors(weights, parts.modules(), add=-1), parts):
        raise CheckpointError(
            f"draft {header.name!r} has not the tensors that its config.json tells of: {summary(misfits)}"
        )
    copies = tuple(copy for copy in layout.copies if copy.tensor in dtypes)
    return parts, Origin(header.name, foreign.format.name, layout.fields, dtypes, copies)


def _of_length(foreign: Foreign, length: Any) -> Foreign:
    """The same where another number of tokens is drafted."""
    strategy = foreign.layout.strategy.replace(draft_length=length)
    return replace(foreign, layout=replace(foreign.layout, strategy=strategy))


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
