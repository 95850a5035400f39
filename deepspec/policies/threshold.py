"""Verify up to the first position whose conditional confidence falls below a threshold."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, ones_like, where

from deepspec.interfaces import LengthPolicy, PartConfig
from deepspec.types import Load


class ThresholdConfig(PartConfig):
    """Options of the threshold policy."""

    threshold: float = Field(default=0.5, ge=0.0, le=1.0, description="smallest c_k that is still verified")


class ThresholdLength(LengthPolicy):
    """Static confidence threshold; each request looks at its own confidences only."""

    name = "threshold"
    recordable = True
    Config = ThresholdConfig
    config: ThresholdConfig

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        before = ones_like(survival)
        before[:, 1:] = survival[:, :-1]
        conditional = where(before > 0, survival / before, 0.0)
        kept = (conditional >= self.config.threshold).to(drafted.dtype).cumprod(dim=1).sum(dim=1)
        return kept.minimum(drafted)
