"""The engine hands a policy its SPS curve each round, with the step's load, and says when it lacks one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepspec.curves import SpsCurve
from deepspec.engine import Engine, SamplingParams
from deepspec.engine import curve as engine_curve
from deepspec.engine.curve import curve_table
from deepspec.interfaces import BuildContext
from deepspec.policies.fixed import FixedLength
from deepspec.policies.prefix import PrefixLength
from deepspec.policies.scheduling import CurveConfig
from deepspec.types import Load
from tests.exact_statistics.compositions import CURVE, build, tiny_target

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _not_said_yet() -> Iterator[None]:
    engine_curve._say.cache_clear()
    yield
    engine_curve._say.cache_clear()


def prefix(curve: SpsCurve | None) -> PrefixLength:
    made = PrefixLength(CurveConfig(), BuildContext(tiny_target(12).info, 3))
    made.curve = curve
    return made


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (None, "has no SPS curve and verifies all"),
        (SpsCurve(verify_tokens=(1, 9), steps_per_s=(5.0, 5.0)), "has a flat SPS curve and verifies all"),
    ],
)
def test_a_curve_that_is_missing_or_flat_is_said_once(
    curve: SpsCurve | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        curve_table(prefix(curve), 20, CPU)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert said in caplog.text
    assert "--set policy.curve=FILE" in caplog.text


def test_a_policy_that_reads_no_curve_gets_none_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    policy = FixedLength(FixedLength.Config(), BuildContext(tiny_target(12).info, 3))
    assert curve_table(policy, 20, CPU) is None
    assert caplog.records == []


def test_a_round_knows_the_curve_to_its_largest_step_and_the_prompt_tokens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = tiny_target(12)
    parts = build(target.info, "dspark", 3, target.dtype, policy="prefix")
    loads: list[Load] = []
    lengths = PrefixLength.lengths

    def seen(self: PrefixLength, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        loads.append(load)
        return lengths(self, survival, drafted, load)

    monkeypatch.setattr(PrefixLength, "lengths", seen)
    engine = Engine(target, replace(parts), max_batch=2, max_positions=40, prefill_chunk=4)
    engine.run([[1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9]], SamplingParams(max_tokens=8, seed=1))
    expected = SpsCurve.read(CURVE).table(2 * 4 + 4)
    assert all(load.steps_per_second.tolist() == expected for load in loads)
    assert max(load.prefill_tokens for load in loads) > 0
    assert {load.num_requests for load in loads} == {1, 2}
    assert caplog.records == []
