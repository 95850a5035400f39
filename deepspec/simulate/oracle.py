"""An upper bound, for simulations and tests only: it knows this round's confidences before it drafts.

It searches all draft lengths and all numbers of tokens for the most expected tokens per second, looking at
whatever it likes; verifying by it would bias the output, so it is not registered.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deepspec.interfaces import LengthPolicy
from deepspec.types import Load


class OracleLength(LengthPolicy):
    """For a number of tokens out of drafts of one length, those of the highest survival are the best."""

    name = "oracle"
    needs_curve: ClassVar[bool] = True

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """See :class:`deepspec.interfaces.LengthPolicy`, whose promise it breaks."""
        assert load.steps_per_second is not None, "an oracle needs a curve"
        assert self.curve is not None, "an oracle needs a curve"
        num, num_draft = survival.shape
        ordered, places = survival.flatten().sort(descending=True, stable=True)
        times = 1 / load.steps_per_second[num + load.prefill_tokens - 1 :]
        times = times - times[0] + 1 / load.steps_per_second[num - 1]  # prompts have to be read anyhow
        # the drafter takes in prompts in any case, too, so they are left out of its time
        best = float(num / (times[0] + self.curve.draft_seconds(num, 0)))
        found = torch.zeros_like(drafted)
        for length in range(1, num_draft + 1):
            kept = places % num_draft < length
            total = num + (ordered * kept).cumsum(dim=0)
            seconds = times[kept.cumsum(dim=0)] + self.curve.draft_seconds(num, length)
            value, at = (total / seconds).max(dim=0)
            if float(value) > best:
                best = float(value)
                chosen = places[: int(at) + 1][kept[: int(at) + 1]] // num_draft
                found = torch.bincount(chosen, minlength=num)
        return found
