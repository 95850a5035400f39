"""Per-request storage of committed positions, for drafters that keep keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


class SlotStore:
    """A tensor ``[slots, positions, *shape]``; later writes to a position replace earlier ones."""

    def __init__(
        self,
        num_slots: int,
        max_positions: int,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.max_positions = max_positions
        self._slots = torch.zeros((num_slots, max_positions, *shape), dtype=dtype, device=device)
        self._rows = self._slots.flatten(0, 1)

    def write(self, rows: Tensor, positions: Tensor, values: Tensor) -> None:
        """Store ``values [T, *shape]`` at slots ``rows [T]`` and ``positions [T]``."""
        self._rows.index_copy_(0, rows * self.max_positions + positions, values)

    def read(self, slots: Tensor | slice, length: int) -> Tensor:
        """The first ``length`` positions of some slots: ``[R, length, *shape]``; a view for a slice."""
        return self._slots[:, :length][slots]
