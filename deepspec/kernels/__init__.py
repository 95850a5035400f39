"""Verify kernels behind one choice: which implementation runs is decided here and can be reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.kernels import reference
from deepspec.types import Draft, TargetRows, Verdict

__all__ = ["VerifyBackend", "backend_for"]


@dataclass(frozen=True)
class VerifyBackend:
    """The verification rules of one implementation; see ``reference`` for what each must compute."""

    name: str
    token_rule: Callable[[TargetRows, Draft, Tensor, Tensor, Tensor], Verdict]
    block_rule: Callable[[TargetRows, Draft, Tensor, Tensor, Tensor], Verdict]
    delta_rule: Callable[[TargetRows, Draft, Tensor, Tensor], Verdict]


_REFERENCE = VerifyBackend("reference", reference.token_rule, reference.block_rule, reference.delta_rule)


def backend_for(device: torch.device) -> VerifyBackend:
    """The implementation for tensors on ``device``; plain torch serves every device for now."""
    return _REFERENCE
