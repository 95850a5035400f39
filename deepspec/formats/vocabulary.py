"""Reduced vocabularies as the field stores them: ``d2t [Vd]``, offsets to row numbers, and ``t2d [V]``, bool.

Row j of the draft head is token ``j + d2t[j]``. Two other readings are about, token ids themselves and the
opposite sign; the file tells them apart wherever it holds ``t2d``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.errors import CheckpointError
from deepspec.formats.names import Rule


def target_ids(d2t: Tensor) -> Tensor:
    """Token ids int64 ``[Vd]`` of offsets ``[Vd]``."""
    return d2t.long() + torch.arange(len(d2t))


def offsets(ids: Tensor) -> Tensor:
    """Offsets int64 ``[Vd]`` of token ids ``[Vd]``."""
    return ids.long().cpu() - torch.arange(len(ids))


#: A reduced vocabulary, and a LM head of the drafter's own, in a table.
VOCABULARY = (
    Rule("d2t", "drafter.vocabulary.target_ids", target_ids, offsets),
    Rule("lm_head.weight", "drafter.vocabulary.lm_head"),
)


def membership(ids: Tensor, vocab_size: int) -> Tensor:
    """``t2d``: bool ``[V]``, which tokens can be drafted."""
    found = torch.zeros(vocab_size, dtype=torch.bool)
    found[ids.cpu()] = True
    return found


def check_map(name: str, d2t: Tensor, t2d: Tensor | None, vocab_size: int) -> None:
    """Raise CheckpointError unless ``d2t`` holds offsets that name each token once, as ``t2d`` says."""
    if _is_map(target_ids(d2t), t2d, vocab_size):
        return
    rows = torch.arange(len(d2t))
    if _is_map(d2t.long(), t2d, vocab_size):
        fault = "it holds token ids, where the layout has token id - row"
    elif _is_map(rows - d2t.long(), t2d, vocab_size):
        fault = "its sign is wrong: it holds row - token id, where the layout has token id - row"
    else:
        fault = f"its offsets do not name each of its tokens once, inside a vocabulary of {vocab_size}"
        fault += "" if t2d is None else ", those that t2d marks"
    raise CheckpointError(f"{name}: d2t cannot be used: {fault}; convert the checkpoint again")


def _is_map(ids: Tensor, t2d: Tensor | None, vocab_size: int) -> bool:
    is_inside = bool(((ids >= 0) & (ids < vocab_size)).all())
    if not is_inside or len(ids.unique()) < len(ids):
        return False
    return t2d is None or bool((membership(ids, len(t2d)) == t2d.bool()).all())
