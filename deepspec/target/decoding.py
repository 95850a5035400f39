"""What decoding needs of a target: whatever has it can be decoded with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from deepspec.interfaces import TargetInfo
from deepspec.types import Features, Span


class DecodingTarget(Protocol):
    """See :class:`deepspec.target.Target` for what each must do."""

    @property
    def info(self) -> TargetInfo:
        """Sizes and shared weights."""

    @property
    def name(self) -> str:
        """What it is called, in an SPS curve for one."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers that cannot be tapped."""

    def new_slots(self, num_slots: int, max_positions: int) -> Any:
        """State of that many requests of that many positions, to be given to :meth:`forward`."""

    def forward(self, tokens: Tensor, spans: Sequence[Span], cache: Any, layers: Sequence[int]) -> Features:
        """One packed forward."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states."""
