"""What the policies promise under load, at a small size; ``benchmarks/simulate.py`` measures it in full."""

from __future__ import annotations

import pytest

from deepspec.curves import SpsCurve
from deepspec.interfaces import PartConfig
from deepspec.roofline import HARDWARE, TARGETS, roofline_curve, tiled
from deepspec.simulate import Workload, build_policy
from deepspec.simulate.comparison import context, serve_point
from deepspec.simulate.oracle import OracleLength
from deepspec.simulate.serving import PREFILL_CHUNK

#: Short answers mix sooner: the same figures in fewer steps.
WORKLOAD = Workload(prompt_tokens=64, output_tokens=64)
#: Two runs of these sizes differ by about as much where the policies do not.
NOISE = 0.03


def curve_of(target: str, concurrency: int) -> SpsCurve:
    return roofline_curve(
        HARDWARE["h200"],
        TARGETS[target],
        num_requests=concurrency,
        context_length=512,
        most_tokens=8 * concurrency + PREFILL_CHUNK,
    )


def rate(policy: str, curve: SpsCurve, concurrency: int) -> float:
    is_oracle = policy == "oracle"
    made = OracleLength(PartConfig(), context(7)) if is_oracle else build_policy(policy, 7)
    steps = max(400, 6000 // concurrency)
    return serve_point(
        made, curve, WORKLOAD, concurrency=concurrency, num_steps=steps, foresees=is_oracle
    ).tokens_per_s


@pytest.mark.parametrize(("target", "concurrency"), [("4b", 1), ("4b", 128), ("70b", 16), ("70b", 256)])
def test_frugal_is_never_below_plain_or_the_best_fixed_length_and_near_the_oracle(
    target: str, concurrency: int
) -> None:
    curve = curve_of(target, concurrency)
    frugal = rate("frugal", curve, concurrency)
    fixed = max(rate(f"fixed:length={length}", curve, concurrency) for length in (0, 1, 4, 7))
    assert frugal >= (0.98 - NOISE) * fixed
    assert frugal >= (0.97 - NOISE) * rate("oracle", curve, concurrency)


def test_the_verify_budget_falls_with_load() -> None:
    budgets = [
        serve_point(
            build_policy("frugal", 7), curve_of("70b", n), WORKLOAD, concurrency=n, num_steps=400
        ).verify_budget
        for n in (8, 64, 512)
    ]
    assert budgets[0] >= 4
    assert budgets[0] > budgets[1] > budgets[2]
    assert budgets[2] < 2.5


def test_cliff_is_ahead_of_the_prefix_scheduler_on_stairs() -> None:
    stairs = tiled(curve_of("70b", 32), 64, 8 * 32 + PREFILL_CHUNK)
    assert rate("cliff", stairs, 32) > 1.1 * rate("prefix", stairs, 32)


def test_frugal_gets_going_at_the_foot_of_a_cliff() -> None:
    """64 requests fill a tile of 64 to the last token, so that no single drafted token ever pays."""
    stairs = tiled(curve_of("4b", 64), 64, 8 * 64 + PREFILL_CHUNK)
    assert rate("frugal", stairs, 64) > 1.3 * rate("fixed:length=0", stairs, 64)
