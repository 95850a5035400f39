"""Temperature scaling of each position's confidence, fitted to it alone or to the survival up to it.

c_k = sigmoid(z_k / T_k) keeps the order of each position's confidences. Guo 2017 (1706.04599); one position
after the other, by the survival, as DSpark does (2607.05147). The criterion is the log loss, whose minimum is
the same as that of a calibration error where the map fits, and far less noisy to find.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor, tensor

from deepspec.calibrators.measures import log_loss
from deepspec.errors import ConfigError
from deepspec.interfaces import BuildContext, Calibrator, PartConfig
from deepspec.rounds import CalibrationRounds, Floats, sigmoid

#: Temperatures that a fit tries: 2 % apart.
GRID = np.exp(np.arange(np.log(0.05), np.log(20.0), 0.02))


class TemperatureConfig(PartConfig):
    """Options of both scalings."""

    temperatures: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = Field(
        default=None, description="T_k of each of the G positions, as a fit finds them; null leaves them at 1"
    )


class TemperatureCalibrator(Calibrator):
    """A temperature for each position, fitted to its own confidences."""

    name = "temperature"
    recordable = True
    Config = TemperatureConfig
    config: TemperatureConfig

    def __init__(self, config: TemperatureConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        given, length = config.temperatures, context.draft_length
        if given is not None and len(given) != length:
            raise ConfigError(
                f"calibrator {self.name!r} has {len(given)} temperatures and draft_length is {length}; give "
                "one for each position, or fit them again: deepspec calibrate RUN"
            )
        self.temperatures = tensor(given or [1.0] * length)

    def conditional(self, confidence: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Calibrator`."""
        self.temperatures = self.temperatures.to(confidence)
        return (confidence / self.temperatures[: confidence.shape[1]]).sigmoid()

    def fit(self, rounds: CalibrationRounds) -> Mapping[str, object]:
        """The temperatures with the least log loss of each position's acceptance."""
        return {"temperatures": [_fitted(rounds, k) for k in range(rounds.draft_length)]}


class SequentialCalibrator(TemperatureCalibrator):
    """A temperature for each position, fitted to the survival up to it, with those before it fixed."""

    name = "sequential"

    def fit(self, rounds: CalibrationRounds) -> Mapping[str, object]:
        """The temperatures, one after the other, with the least log loss of the survival."""
        return {"temperatures": sequential_temperatures(rounds)}


def sequential_temperatures(rounds: CalibrationRounds) -> list[float]:
    """T_1..T_G with the least log loss of the survival up to each position, those before it fixed."""
    found: list[float] = []
    before = np.ones(len(rounds))
    for k in range(rounds.draft_length):
        closed = rounds.closed[:, k]
        logits, happened = rounds.confidence[closed, k], rounds.prefix[closed, k]
        found.append(_best_temperature(before[closed], logits, happened))
        before = before * sigmoid(rounds.confidence[:, k] / found[-1])
    return found


def _fitted(rounds: CalibrationRounds, k: int) -> float:
    looked = rounds.looked[:, k]
    logits = rounds.confidence[looked, k]
    return _best_temperature(np.ones(len(logits)), logits, rounds.kept[looked, k])


def _best_temperature(before: Floats, logits: Floats, happened: Floats) -> float:
    """The grid's temperature of least log loss of ``before`` x sigmoid; 1 when there is no round to tell."""
    if not len(logits):
        return 1.0
    losses = [log_loss(before * sigmoid(logits / t), happened) for t in GRID]
    return round(float(GRID[int(np.argmin(losses))]), 4)
