"""Draft as many tokens every round, and verify them all."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from deepspec.interfaces import LengthPolicy, PartConfig
from deepspec.types import Load


class FixedConfig(PartConfig):
    """Options of the fixed policy."""

    length: int | None = Field(
        default=None,
        ge=0,
        description="tokens to draft, at most draft_length; 0 is plain decoding, null is draft_length",
    )


class FixedLength(LengthPolicy):
    """The verify length is the draft length."""

    name = "fixed"
    recordable = True
    needs_confidence = False
    Config = FixedConfig
    config: FixedConfig

    def draft_length(self, load: Load) -> int:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        most, wanted = self.context.draft_length, self.config.length
        return most if wanted is None else min(wanted, most)

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        return drafted
