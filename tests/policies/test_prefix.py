"""The prefix scheduler as a policy: lossless, on the curve that the load carries, everything without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deepspec.exact import rows
from deepspec.exact.law import one_request
from deepspec.interfaces import BuildContext
from deepspec.policies.prefix import PrefixLength
from deepspec.policies.scheduling import CurveConfig
from deepspec.testing import check_part
from deepspec.types import Load
from tests.exact.made_parts import Still, Told, built, constant_target
from tests.tiny_models import tiny_info

SURVIVAL = torch.tensor([[0.9, 0.5, 0.0], [0.8, 0.7, 0.6]])


def policy(curve: Path | None = None) -> PrefixLength:
    config = CurveConfig(curve=None if curve is None else str(curve))
    return PrefixLength(config, BuildContext(tiny_info(), 3))


def test_it_keeps_every_promise_of_a_policy_and_the_joint_law_of_two_requests() -> None:
    check_part(PrefixLength).raise_if_failed()


def test_the_check_sees_it_choose() -> None:
    target = constant_target(0.7, 0.3)
    assert set(one_request(target, built(target, 2, Still, Told, policy="prefix"), [0, 1]).lengths) == {1, 2}


def test_the_worked_counterexample_keeps_the_targets_law(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = torch.tensor([1.0, 0.5, 0.45]).double()
    monkeypatch.setattr(rows, "toy_load", lambda num: Load(num, steps_per_second=curve))
    target = constant_target(0.7, 0.3)
    laws = one_request(target, built(target, 2, Still, Told, policy="prefix"), [0, 1])
    first = laws.emitted.reshape(2, -1).sum(dim=1)
    torch.testing.assert_close(first, torch.tensor([0.7, 0.3], dtype=torch.float64), atol=1e-12, rtol=0)
    assert laws.lengths == (0,)  # 1.8 tokens at half the speed do not pay, and what comes later is not seen


def test_without_a_curve_all_that_may_survive_is_verified() -> None:
    drafted = torch.tensor([3, 2])
    assert policy().lengths(SURVIVAL, drafted, Load(2)).tolist() == [2, 2]


def test_it_schedules_by_the_curve_of_the_load() -> None:
    drafted = torch.tensor([3, 3])
    steep = 100 / (1 + torch.arange(1, 20)).double()
    assert policy().lengths(SURVIVAL, drafted, Load(2, steps_per_second=steep)).tolist() == [1, 1]
    assert policy().lengths(SURVIVAL, drafted, Load(2, 0, torch.ones(19).double())).tolist() == [2, 3]


def test_its_options_name_the_curve_that_an_engine_hands_out(tmp_path: Path) -> None:
    assert policy().curve is None
    file = tmp_path / "curve.json"
    file.write_text(json.dumps({"schema": 1, "verify_tokens": [1, 9], "steps_per_s": [5, 1]}))
    assert policy(file).curve.table(9)[8] == 1
