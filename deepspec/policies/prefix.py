"""Verify the tokens that raise expected throughput: the hardware-aware prefix scheduler (DSpark, 2607.05147).

It weighs what a row of the target step costs on this machine, by its SPS curve, against what it may gain.
The scheduler itself is in ``deepspec.kernels``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, arange

from deepspec.curves import SpsCurve
from deepspec.interfaces import BuildContext, LengthPolicy, PartConfig
from deepspec.kernels import backend_for
from deepspec.types import Load


class PrefixConfig(PartConfig):
    """Options of the prefix scheduler."""

    curve: str | None = Field(
        default=None, description="file of the SPS curve of this machine and target; null verifies everything"
    )


class PrefixLength(LengthPolicy):
    """One walk over the survival of all requests; stops at the first token that does not pay."""

    name = "prefix"
    recordable = True
    needs_curve: ClassVar[bool] = True
    Config = PrefixConfig
    config: PrefixConfig

    def __init__(self, config: PrefixConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.curve = None if config.curve is None else SpsCurve.read(config.curve)

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        steps_per_second = load.steps_per_second
        if steps_per_second is None:
            inside = arange(survival.shape[1], device=survival.device) < drafted[:, None]
            return (inside & (survival > 0)).sum(dim=1)
        schedule = backend_for(survival.device, survival.dtype).prefix_lengths
        return schedule(survival, drafted, steps_per_second, load.prefill_tokens)
