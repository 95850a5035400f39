"""A calibrator that follows its traffic: logistic maps adapted from live rounds, the past slowly forgotten.

Position k of traffic class c has c_k = sigmoid(slope z_k + bias). Each round adds one Newton step on the log
loss of exactly those positions that were looked at, so what a policy left out biases nothing; the weight of
what was seen before halves every ``half_life`` rounds of a request of that class.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from deepspec.calibrators.temperature import TemperatureCalibrator, TemperatureConfig, sequential_temperatures
from deepspec.interfaces import BuildContext, OnlineCalibrator, SeenRounds
from deepspec.rounds import CalibrationRounds

#: The smallest slope, so that a map never falls.
LEAST_SLOPE = 0.02
#: Larger logits count as this much, so that a single round cannot turn a map.
LARGEST_LOGIT = 8.0
#: What the start is worth beside rounds seen: information on (slope, bias).
PRIOR = (4.0, 4.0)


class OnlineConfig(TemperatureConfig):
    """Options of the online calibrator; it starts from ``temperatures``."""

    num_classes: int = Field(default=1, ge=1, description="traffic classes that it tells apart, 0 and up")
    half_life: float = Field(
        default=1000.0, gt=0, description="rounds of a request after which what was seen weighs half"
    )


class OnlineLogistic(OnlineCalibrator):
    """One logistic map for each traffic class and position."""

    name = "online"
    recordable = True
    Config = OnlineConfig
    config: OnlineConfig

    def __init__(self, config: OnlineConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        start = TemperatureCalibrator(TemperatureConfig(temperatures=config.temperatures), context)
        self._start = start.temperatures
        self.begin(torch.device("cpu"))

    @property
    def num_classes(self) -> int:
        """See :class:`deepspec.interfaces.OnlineCalibrator`."""
        return self.config.num_classes

    def begin(self, device: torch.device) -> None:
        """See :class:`deepspec.interfaces.OnlineCalibrator`."""
        real = torch.float32 if device.type == "mps" else torch.float64
        slope = (1 / self._start).to(device, real)
        start = torch.stack([slope, torch.zeros_like(slope)], dim=-1)
        #: (slope, bias) ``[C, G, 2]``, and the information seen of them ``[C, G, 2, 2]``.
        self._map = start.repeat(self.num_classes, 1, 1)
        self._information = torch.diag(start.new_tensor(PRIOR)).expand(*self._map.shape, 2).clone()

    def conditional(self, confidence: Tensor, classes: Tensor | None = None) -> Tensor:
        """See :class:`deepspec.interfaces.OnlineCalibrator`."""
        chosen = self._map[:1] if classes is None else self._map[classes]
        chosen = chosen[:, : confidence.shape[1]].to(confidence)
        logits = confidence.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return (chosen[..., 0].clamp(min=LEAST_SLOPE) * logits + chosen[..., 1]).sigmoid()

    def observe(self, seen: SeenRounds) -> None:
        """See :class:`deepspec.interfaces.OnlineCalibrator`."""
        length = seen.confidence.shape[1]
        steps = torch.arange(1, length + 1, device=seen.confidence.device)
        looked = (seen.verified[:, None] >= steps) & (seen.accepted[:, None] >= steps - 1)
        kept = seen.accepted[:, None] >= steps
        predicted = self.conditional(seen.confidence, seen.classes).to(self._map)
        logits = seen.confidence.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).to(self._map)
        inputs = torch.stack([logits, torch.ones_like(logits)], dim=-1)
        member = one_hot(seen.classes, self.num_classes).to(self._map)
        error = torch.where(looked, kept.to(self._map) - predicted, 0.0)
        weight = torch.where(looked, predicted * (1 - predicted), 0.0)
        gradient = torch.einsum("rc,rk,rki->cki", member, error, inputs)
        information = torch.einsum("rc,rk,rki,rkj->ckij", member, weight, inputs, inputs)
        fade = 0.5 ** (member.sum(dim=0) / self.config.half_life)
        self._learn(gradient, information, fade[:, None, None, None], length)

    def _learn(self, gradient: Tensor, information: Tensor, fade: Tensor, length: int) -> None:
        """One Newton step of every map; the prior's worth is what is never forgotten."""
        prior = torch.diag(information.new_tensor(PRIOR))
        known = prior + fade * (self._information[:, :length] - prior) + information
        step = _solved(known, gradient)
        self._information[:, :length] = known
        self._map[:, :length] += step

    def fit(self, rounds: CalibrationRounds) -> Mapping[str, object]:
        """Where to start from: sequential temperatures."""
        return {"temperatures": sequential_temperatures(rounds)}


def _solved(matrix: Tensor, vector: Tensor) -> Tensor:
    """x with ``matrix`` x = ``vector``, ``[..., 2, 2]`` and ``[..., 2]``, without a solver's checks."""
    a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    x, y = vector.unbind(-1)
    return torch.stack([d * x - b * y, a * y - b * x], dim=-1) / (a * d - b * b)[..., None]
