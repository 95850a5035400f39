"""Rooflines: the arithmetic by hand, the kink, mixtures of experts, and stairs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deepspec.errors import ConfigError
from deepspec.roofline import HARDWARE, TARGETS, draft_cost, roofline_curve, tiled

H200, SMALL = HARDWARE["h200"], TARGETS["4b"]


def time_of(tokens: int, **changes: object) -> float:
    given = {"num_requests": 8, "context_length": 1000, "most_tokens": 4096, **changes}
    return 1 / roofline_curve(H200, SMALL, **given).table(4096)[tokens - 1]


def test_a_step_reads_weights_and_keys_and_computes_two_operations_a_weight() -> None:
    reading = (8e9 + 8 * 1000 * 147_456) / 4.8e12
    computing = 2 * 4e9 * 16 / 989e12
    assert time_of(16) == pytest.approx(500e-6 + reading + computing / 2)
    computing = 2 * 4e9 * 4096 / 989e12
    assert time_of(4096) == pytest.approx(500e-6 + computing + reading / 2)


def test_it_says_that_it_is_modelled_and_has_no_cliff() -> None:
    curve = roofline_curve(H200, SMALL, num_requests=8, context_length=1000, most_tokens=600)
    assert curve.modelled
    assert curve.is_convex
    assert (curve.hardware, curve.model, curve.verify_tokens[-1]) == ("NVIDIA H200", "4b class", 600)
    assert curve.draft == draft_cost(H200, SMALL)


def test_a_mixture_of_experts_reads_more_of_its_weights_with_more_tokens() -> None:
    sparse = replace(SMALL, active_params=4e8)
    given = {"num_requests": 1, "context_length": 1, "most_tokens": 64}
    one, many = (1 / roofline_curve(H200, sparse, **given).table(64)[b - 1] for b in (1, 64))
    dense = 1 / roofline_curve(H200, SMALL, **given).table(64)[0]
    assert one < 0.5 * dense
    assert many > one + 0.9 * 8e9 / 4.8e12


def test_drafting_costs_a_pass_then_each_position_and_token() -> None:
    cost = draft_cost(H200, SMALL)
    assert cost.of(4, 0) == cost.of(0, 4) == 0
    assert cost.of(4, 7) == pytest.approx(
        cost.seconds + 7 * cost.seconds_per_position + 28 * cost.seconds_per_token
    )


def test_tiles_make_stairs_whose_ends_are_on_the_smooth_curve() -> None:
    smooth = roofline_curve(H200, SMALL, num_requests=8, context_length=1000, most_tokens=512)
    stairs = tiled(smooth, 64, 512).table(512)
    assert not tiled(smooth, 64, 512).is_convex
    assert stairs[63] == pytest.approx(smooth.table(64)[63])
    assert stairs[0] == pytest.approx(stairs[63])
    assert stairs[64] == pytest.approx(stairs[127])
    with pytest.raises(ConfigError, match="tile is 0"):
        tiled(smooth, 0, 512)
