"""Verify the K likeliest tokens, K being known before the step: the asynchronous prefix scheduler.

For engines that must size a step's batch before this round's confidences are there (DSpark, 2607.05147). The
budget comes from confidences two rounds old, so it may be searched without constraint, over cliffs of the
curve too; this round's confidences only say which K tokens, walking from the likeliest down. Exact, given
that each round draws its drafts with fresh noise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deepspec.interfaces import BuildContext, LengthPolicy
from deepspec.kernels.schedule import UNIT, first_of, walk_order
from deepspec.policies.scheduling import CurveConfig, all_alive, read_curve, step_speeds
from deepspec.types import Load


class TopKLength(LengthPolicy):
    """The first K tokens by live survival; everything while there are no two rounds to look back on."""

    name = "topk"
    needs_curve: ClassVar[bool] = True
    Config = CurveConfig
    config: CurveConfig

    def __init__(self, config: CurveConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.curve = read_curve(config)

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`."""
        if load.steps_per_second is None or load.earlier_survival is None or survival.shape[1] == 0:
            return all_alive(survival, drafted)
        pairs = survival.numel()
        keys, ordered = walk_order(survival, drafted, load.steps_per_second.dtype)
        alive = (UNIT - ordered // pairs > 0).sum(dim=0, keepdim=True)
        speed = step_speeds(load, pairs, self.curve, survival.shape[1])
        budget = search_budget(load.earlier_survival, len(survival), speed)
        return first_of(keys, ordered, budget.minimum(alive))


def search_budget(earlier: Tensor, num_requests: int, speed: Tensor) -> Tensor:
    """The K whose expected tokens per second is best: int64 ``[1]``.

    Args:
        earlier: survival ``[R', G']`` of another round; where R' is not R, each of its sorted tokens stands
            for R / R' of this round's.
        num_requests: R.
        speed: ``[n + 1]``, steps per second with 0..n tokens admitted.
    """
    profile = earlier.to(speed.dtype).flatten().sort(descending=True).values
    ranks = torch.arange(len(speed) - 1, device=speed.device) * len(earlier) // num_requests
    gains = torch.where(ranks < len(profile), profile[ranks.clamp(max=len(profile) - 1)], 0.0)
    expected = num_requests + torch.nn.functional.pad(gains.cumsum(dim=0), (1, 0))
    return (expected * speed).argmax(dim=0, keepdim=True)
