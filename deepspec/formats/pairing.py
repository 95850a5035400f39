"""Whether a checkpoint is for this target: sizes that its file tells, and the copies that it holds."""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.formats.header import Header
from deepspec.formats.layout import SharedCopy, TargetClaim
from deepspec.target import Target

#: Rows that are compared at once.
_ROWS = 8192


def check_claim(header: Header, claim: TargetClaim, target: Target) -> None:
    """Raise ConfigError, naming each, where the target's sizes are not those that the checkpoint tells."""
    info = target.info
    sizes = {
        "vocabulary": (claim.vocab_size, info.vocab_size),
        "hidden size": (claim.hidden_size, info.hidden_size),
        "number of layers": (claim.num_layers, info.num_layers),
    }
    wrong = [
        f"{name} {found} instead of {said}"
        for name, (said, found) in sizes.items()
        if said is not None and said != found
    ]
    if wrong:
        raise ConfigError(
            f"draft {header.name!r} is for another target: {target.name!r} has {', '.join(wrong)}; give "
            "the --target "
            "that it was trained for"
        )


def differs(tensor: Tensor, copy: SharedCopy, target: Target, ids: Tensor | None) -> str | None:
    """How a copy differs from the target's own tensor; None when both are the same in the coarser type.

    ``ids`` are the rows of a reduced LM head.
    """
    whole = target.info.embedding if copy.of == "embedding" else target.info.lm_head
    rows = torch.arange(len(whole)) if copy.of == "embedding" or ids is None else ids
    if tensor.shape != (len(rows), whole.shape[1]):
        return f"has {list(whole.shape)} where it has {list(tensor.shape)}"
    kind = min(tensor.dtype, whole.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        ours = whole[part.to(whole.device)].to("cpu", kind)
        if not ours.equal(tensor[start : start + _ROWS].to(kind)):
            return "has other values"
    return None
