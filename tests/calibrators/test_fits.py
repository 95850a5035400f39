"""Each calibrator, fitted to rounds whose chances are known, finds them on others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepspec.calibrators.isotonic import IsotonicCalibrator, IsotonicConfig, isotonic_knots
from deepspec.calibrators.measures import area_under_curve, calibration_error, calibration_floor
from deepspec.calibrators.temperature import SequentialCalibrator, TemperatureCalibrator
from deepspec.errors import ConfigError
from deepspec.interfaces import BuildContext, Calibrator
from deepspec.plugins import create_plugin_manager, resolve_part
from deepspec.rounds import CalibrationRounds
from deepspec.validation import validate
from tests.calibrators.made_rounds import made_rounds
from tests.tiny_models import tiny_info

SCALES = (3.0, 2.5, 0.6, 2.0)


def fitted(name: str, rounds: CalibrationRounds) -> Calibrator:
    """The calibrator with the options that it finds."""
    cls = resolve_part(create_plugin_manager(), "calibrator", name)
    context = BuildContext(tiny_info(), rounds.draft_length)
    options = cls(cls.Config(), context).fit(rounds)
    return cls(validate(cls.Config, options, name), context)


def survival(calibrator: Calibrator, rounds: CalibrationRounds) -> np.ndarray:
    conditional = calibrator.conditional(torch.from_numpy(rounds.confidence))
    return conditional.cumprod(dim=1).numpy()


@pytest.mark.parametrize("name", ["temperature", "sequential", "isotonic", "online"])
def test_a_fit_brings_the_survival_near_its_floor(name: str) -> None:
    calibrator, others = fitted(name, made_rounds(SCALES, 3000)), made_rounds(SCALES, 4000, seed=1)
    raw = 1 / (1 + np.exp(-others.confidence))
    for k, (before, after) in enumerate(
        zip(raw.cumprod(axis=1).T, survival(calibrator, others).T, strict=True)
    ):
        happened = others.prefix[:, k]
        assert calibration_error(after, happened) < calibration_floor(after) + 0.01
        assert calibration_error(before, happened) > calibration_floor(before) + 0.025


@pytest.mark.parametrize("name", ["temperature", "sequential"])
def test_scaling_finds_the_temperatures(name: str) -> None:
    rounds = made_rounds(SCALES, 8_000)
    cls = {"temperature": TemperatureCalibrator, "sequential": SequentialCalibrator}[name]
    found = cls(cls.Config(), BuildContext(tiny_info(), 4)).fit(rounds)["temperatures"]
    assert found == pytest.approx(SCALES, rel=0.15)


@pytest.mark.parametrize("name", ["temperature", "sequential", "isotonic"])
def test_the_order_of_each_position_is_kept(name: str) -> None:
    calibrator, rounds = fitted(name, made_rounds(SCALES, 3000)), made_rounds(SCALES, 2000, seed=1)
    after = calibrator.conditional(torch.from_numpy(rounds.confidence)).numpy()
    for k in range(rounds.draft_length):
        looked = rounds.looked[:, k]
        happened = rounds.kept[looked, k]
        assert area_under_curve(after[looked, k], happened) == pytest.approx(
            area_under_curve(rounds.confidence[looked, k], happened), abs=1e-9
        )


def test_what_a_policy_left_out_biases_no_fit() -> None:
    whole, cut = made_rounds(SCALES, 8_000), made_rounds(SCALES, 8_000, length=2)
    assert not cut.looked[:, 2:].any()
    cls = TemperatureCalibrator
    found = [cls(cls.Config(), BuildContext(tiny_info(), 4)).fit(r)["temperatures"] for r in (whole, cut)]
    assert found[0][:2] == found[1][:2]
    assert found[1][2:] == [1.0, 1.0]


def test_chances_need_far_fewer_rounds_than_coin_flips() -> None:
    truth = np.random.default_rng(0).normal(0.8, 1.2, (150, 4))
    rounds = CalibrationRounds.from_chances(truth * SCALES, 1 / (1 + np.exp(-truth)))
    cls = SequentialCalibrator
    found = cls(cls.Config(), BuildContext(tiny_info(), 4)).fit(rounds)["temperatures"]
    assert found == pytest.approx(SCALES, rel=0.03)


def test_a_row_that_was_not_verified_has_no_chance() -> None:
    chances = np.array([[0.5, 0.25, np.nan]])
    rounds = CalibrationRounds.from_chances(np.zeros((1, 3)), chances)
    assert rounds.looked.tolist() == [[True, True, False]]
    assert rounds.prefix[0, :2].tolist() == [0.5, 0.125]


def test_isotonic_pools_what_falls() -> None:
    logits = np.linspace(-2, 2, 800)
    falling = np.where(logits < 0, 1.0, 0.0)
    assert len(isotonic_knots(logits, falling)) == 1
    assert isotonic_knots(logits, falling)[0][1] == pytest.approx(0.5)
    assert isotonic_knots(logits[:0], falling[:0]) == [(0.0, 0.5)]


def test_options_that_do_not_fit_are_refused() -> None:
    context = BuildContext(tiny_info(), 3)
    with pytest.raises(ConfigError, match="2 temperatures and draft_length is 3"):
        TemperatureCalibrator(TemperatureCalibrator.Config(temperatures=(1.0, 2.0)), context)
    with pytest.raises(ConfigError, match="knots of 1 positions and draft_length is 3"):
        IsotonicCalibrator(IsotonicConfig(knots=(((0.0, 0.5),),)), context)
    falling = ((0.0, 0.5), (1.0, 0.4))
    with pytest.raises(ConfigError, match="position 1 must be at least one, with rising"):
        IsotonicCalibrator(IsotonicConfig(knots=(falling,) * 3), context)
    with pytest.raises(ConfigError, match="temperatures"):
        validate(TemperatureCalibrator.Config, {"temperatures": [1.0, 0.0, 2.0]}, "calibrator")
