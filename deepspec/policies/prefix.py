"""Verify the tokens that raise expected throughput: the hardware-aware prefix scheduler (DSpark, 2607.05147).

It weighs what a row of the target step costs on this machine, by its SPS curve, against what it may gain.
The scheduler itself is in ``deepspec.kernels``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deepspec.interfaces import BuildContext, LengthPolicy
from deepspec.kernels import backend_for
from deepspec.policies.scheduling import CurveConfig, all_alive, read_curve
from deepspec.types import Load


class PrefixLength(LengthPolicy):
    """One walk over the survival of all requests; stops at the first token that does not pay."""

    name = "prefix"
    recordable = True
    needs_curve: ClassVar[bool] = True
    Config = CurveConfig
    config: CurveConfig

    def __init__(self, config: CurveConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.curve = read_curve(config)

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        steps_per_second = load.steps_per_second
        if steps_per_second is None:
            return all_alive(survival, drafted)
        schedule = backend_for(survival.device, survival.dtype).prefix_lengths
        return schedule(survival, drafted, steps_per_second, load.prefill_tokens)
