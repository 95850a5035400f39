"""A prefix scheduler for jagged curves: it crosses a cliff where the way beyond is expected to pay for it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deepspec.interfaces import BuildContext, LengthPolicy
from deepspec.policies.hull import HullScheduler
from deepspec.policies.scheduling import CurveConfig, read_curve
from deepspec.types import Load


class CliffLength(LengthPolicy):
    """The walk of :mod:`deepspec.policies.hull` over this round's survival."""

    name = "cliff"
    needs_curve: ClassVar[bool] = True
    Config = CurveConfig
    config: CurveConfig

    def __init__(self, config: CurveConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.curve = read_curve(config)
        self._schedule = HullScheduler()

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        return self._schedule(survival, drafted, load, self.curve)
