"""The online calibrator follows a change of traffic, each class by itself, from what was looked at alone."""

from __future__ import annotations

import numpy as np
import torch

from deepspec.calibrators.measures import calibration_error, calibration_floor
from deepspec.calibrators.online import OnlineConfig, OnlineLogistic
from deepspec.interfaces import BuildContext, SeenRounds
from deepspec.rounds import CalibrationRounds
from tests.calibrators.made_rounds import made_rounds
from tests.tiny_models import tiny_info

REQUESTS = 32
BEFORE, AFTER = (1.0, 1.0, 1.0, 1.0), (3.0, 2.0, 2.0, 0.5)


def calibrator(**options: object) -> OnlineLogistic:
    return OnlineLogistic(OnlineConfig(**options), BuildContext(tiny_info(), 4))


def watch(
    online: OnlineLogistic, rounds: CalibrationRounds, *, length: int = 4, traffic_class: int = 0
) -> None:
    """Show the rounds ``REQUESTS`` at a time, verified up to ``length``."""
    accepted = torch.from_numpy((rounds.kept.sum(axis=1)).astype(np.int64)).clamp(max=length)
    confidence = torch.from_numpy(rounds.confidence).float()
    for start in range(0, len(rounds), REQUESTS):
        rows = slice(start, start + REQUESTS)
        num = len(accepted[rows])
        online.observe(
            SeenRounds(
                confidence[rows],
                torch.full((num,), length),
                accepted[rows],
                torch.full((num,), traffic_class),
            )
        )


def excess(online: OnlineLogistic, rounds: CalibrationRounds, *, traffic_class: int = 0) -> float:
    """The mean ECE of the survival above its floor."""
    classes = torch.full((len(rounds),), traffic_class)
    after = online.conditional(torch.from_numpy(rounds.confidence), classes).cumprod(dim=1).numpy()
    errors = [
        calibration_error(column, rounds.prefix[:, k]) - calibration_floor(column)
        for k, column in enumerate(after.T)
    ]
    return float(np.mean(errors))


def test_it_follows_a_switch_of_traffic() -> None:
    online, others = calibrator(), made_rounds(AFTER, 4000, seed=9, shift=0.7)
    watch(online, made_rounds(BEFORE, 300 * REQUESTS))
    assert excess(online, others) > 0.05
    watch(online, made_rounds(AFTER, 300 * REQUESTS, seed=2, shift=0.7))
    assert excess(online, others) < 0.015


def test_classes_learn_by_themselves() -> None:
    online = calibrator(num_classes=2)
    watch(online, made_rounds(AFTER, 300 * REQUESTS), traffic_class=1)
    untouched = calibrator()
    logits = torch.randn(5, 4)
    assert torch.equal(online.conditional(logits, torch.zeros(5, dtype=torch.int64)), logits.sigmoid())
    assert torch.equal(untouched.conditional(logits), logits.sigmoid())
    assert excess(online, made_rounds(AFTER, 4000, seed=9), traffic_class=1) < 0.015


def test_positions_past_the_verified_ones_teach_nothing() -> None:
    online = calibrator()
    watch(online, made_rounds(AFTER, 300 * REQUESTS), length=2)
    logits = torch.randn(5, 4)
    assert torch.equal(online.conditional(logits)[:, 2:], logits[:, 2:].sigmoid())


def test_a_map_never_falls_whatever_it_sees() -> None:
    online = calibrator(half_life=50.0)
    backwards = made_rounds((-3.0, -3.0, -3.0, -3.0), 100 * REQUESTS)
    watch(online, backwards)
    logits = torch.linspace(-9, 9, 50)[:, None].expand(50, 4)
    found = online.conditional(logits)
    assert bool((found[1:] >= found[:-1]).all())
    assert bool(((found > 0) & (found < 1)).all())


def test_it_starts_from_what_was_fitted() -> None:
    online = calibrator(temperatures=(2.0, 1.0, 4.0, 1.0))
    logits = torch.full((1, 4), 2.0)
    assert torch.allclose(online.conditional(logits), (logits / torch.tensor([2.0, 1.0, 4.0, 1.0])).sigmoid())
