"""Verify everything that was drafted."""

from __future__ import annotations

from torch import Tensor

from deepspec.interfaces import LengthPolicy
from deepspec.types import Load


class FixedLength(LengthPolicy):
    """The verify length is the draft length."""

    name = "fixed"
    recordable = True
    needs_confidence = False

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        return drafted
