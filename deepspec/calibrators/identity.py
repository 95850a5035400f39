"""Take the head's confidence at its word."""

from __future__ import annotations

from torch import Tensor

from deepspec.interfaces import Calibrator


class IdentityCalibrator(Calibrator):
    """c_k = sigmoid(confidence logit)."""

    name = "identity"
    recordable = True

    def conditional(self, confidence: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Calibrator`."""
        return confidence.sigmoid()
