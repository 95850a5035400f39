"""What the schedulers share: the option that names a curve, and steps per second by admitted tokens."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, arange
from torch.nn.functional import pad

from deepspec.curves import SpsCurve
from deepspec.interfaces import PartConfig
from deepspec.types import Load


class CurveConfig(PartConfig):
    """Options of a scheduler."""

    curve: str | None = Field(
        default=None, description="file of the SPS curve of this machine and target; null verifies everything"
    )


def read_curve(config: CurveConfig) -> SpsCurve | None:
    """The curve that the options name; raises ConfigError for a file that holds none."""
    return None if config.curve is None else SpsCurve.read(config.curve)


def all_alive(survival: Tensor, drafted: Tensor) -> Tensor:
    """Verify lengths of a scheduler without a curve: all that may survive, int64 ``[R]``."""
    inside = arange(survival.shape[1], device=survival.device) < drafted[:, None]
    return (inside & (survival > 0)).sum(dim=1)


def step_speeds(
    load: Load, pairs: int, curve: SpsCurve | None, num_draft: int, *, counts_prompts: bool = True
) -> Tensor:
    """Rounds per second with 0..pairs drafted tokens admitted, the drafter's time included: ``[pairs + 1]``.

    0 past the end of the load's curve, so that nothing is admitted there. Without ``counts_prompts`` a
    round's time is less by what its prompt tokens take by themselves: T(B) - T(R + prompts) + T(R).
    """
    table, num = load.steps_per_second, load.num_requests
    assert table is not None, "a schedule needs a curve"
    window = table[num + load.prefill_tokens - 1 :][: pairs + 1]
    prompts = load.prefill_tokens if counts_prompts else 0
    seconds = 0.0 if curve is None else curve.draft_seconds(num, num_draft, prompts)
    if counts_prompts or load.prefill_tokens == 0:
        speed = window if seconds == 0 else (window.reciprocal() + seconds).reciprocal()
    else:
        apart = seconds + table[num - 1].reciprocal() - window[:1].reciprocal()
        speed = (window.reciprocal() + apart).reciprocal()
    return pad(speed, (0, pairs + 1 - len(speed)))
