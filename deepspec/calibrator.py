"""The third part: what a confidence means as a probability, settled once or learnt from live rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.context import BuildContext
from deepspec.parts import Part, PartConfig

if TYPE_CHECKING:
    from deepspec.rounds import CalibrationRounds


class Calibrator(Part, ABC):
    """What does a confidence mean as a probability?"""

    kind = "calibrator"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def conditional(self, confidence: Tensor) -> Tensor:
        """Logits ``[R, G]`` to conditional acceptance c_k in (0, 1), monotone at each position.

        The core takes the cumulative product afterwards, so survival never increases.
        """

    def fit(self, rounds: CalibrationRounds) -> Mapping[str, object] | None:
        """Options with which the part fits held-out rounds best, all else as it is; None: nothing to fit.

        ``deepspec calibrate`` stores them with the checkpoint.
        """
        return None


@dataclass(frozen=True)
class SeenRounds:
    """What a round showed of R requests, on device.

    Attributes:
        confidence: logits ``[R, G]``.
        verified, accepted: int64 ``[R]``; position k was looked at when k <= verified and k - 1 <= accepted.
        classes: int64 ``[R]``, the requests' traffic classes.
    """

    confidence: Tensor
    verified: Tensor
    accepted: Tensor
    classes: Tensor


class OnlineCalibrator(Calibrator):
    """A calibrator that goes on learning from past rounds, each traffic class by itself."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many traffic classes it tells apart; an engine refuses requests of others."""

    @abstractmethod
    def begin(self, device: torch.device) -> None:
        """Start learning; an engine calls this on a shallow copy, so what is set here is its own."""

    @abstractmethod
    def conditional(self, confidence: Tensor, classes: Tensor | None = None) -> Tensor:
        """As of any calibrator, for requests of ``classes`` int64 ``[R]``, all of class 0 when None."""

    @abstractmethod
    def observe(self, seen: SeenRounds) -> None:
        """Learn from a round whose verdict is known; without waiting for the device."""
