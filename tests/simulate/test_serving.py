"""The simulated engine by hand on small cases, its arrivals, and that it cannot be told nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepspec.curves import DraftCost, SpsCurve
from deepspec.errors import ConfigError
from deepspec.interfaces import PartConfig
from deepspec.simulate import (
    RecordedAcceptance,
    RecordedRounds,
    Requests,
    Workload,
    build_policy,
    closed_loop,
    serve,
)
from deepspec.simulate.comparison import context
from deepspec.simulate.oracle import OracleLength
from deepspec.simulate.workload import arrival_times, open_loop

#: A step takes B milliseconds, drafting one and a half for each position.
CURVE = SpsCurve(
    verify_tokens=(1, 100), steps_per_s=(1000.0, 10.0), draft=DraftCost(seconds_per_position=1.5e-3)
)
TWO_OF_THREE = RecordedRounds(np.array([[0.9, 0.8, 0.1]]), np.array([2]), np.array([0]))


def requests(num: int, prompt: int, output: int, arrivals: object = None) -> Requests:
    same = np.ones(num, np.int64)
    return Requests(0 * same, prompt * same, output * same, arrivals)


def served(policy: str, asked: Requests, **options: object) -> object:
    model = RecordedAcceptance(TWO_OF_THREE, 8, seed=0)
    return serve(build_policy(policy, 3), CURVE, model, asked, **{"warm_up": 0.0, **options})


def test_time_is_the_curves_for_all_rows_and_what_drafting_takes() -> None:
    found = served("fixed", requests(4, 1, 10**6), num_slots=2, num_steps=100)
    assert found.accepted_length == 3
    assert found.verify_budget == 4
    assert found.tokens_per_s == pytest.approx(2 * 3 / 12.5e-3)
    assert found.tokens_per_s_per_user == pytest.approx(3 / 12.5e-3)
    assert found.tbt_ms_p50 == found.tbt_ms_p99 == pytest.approx(12.5 / 3)
    plain = served("fixed:length=0", requests(4, 1, 10**6), num_slots=2, num_steps=100)
    assert (plain.draft_length, plain.verify_budget) == (0, 1)
    assert plain.tokens_per_s == pytest.approx(1000)


def test_a_drafter_takes_in_text_even_where_it_drafts_nothing() -> None:
    cost = DraftCost(seconds=5e-3, extend_seconds=2e-3, extend_seconds_per_token=1e-3)
    curve = CURVE.model_copy(update={"draft": cost})
    model = RecordedAcceptance(TWO_OF_THREE, 8, seed=0)
    policy = build_policy("fixed:length=0", 3)
    found = serve(policy, curve, model, requests(1, 1, 10**6), num_slots=1, num_steps=9, warm_up=0.0)
    assert found.tokens_per_s == pytest.approx(1 / (1e-3 + 2e-3 + 1e-3))
    asked = requests(1, 10, 4, np.array([0.5]))
    found = serve(policy, curve, model, asked, num_slots=1, num_steps=9, prefill_chunk=4, warm_up=0.0)
    assert found.tokens_per_s == pytest.approx(3 / (13e-3 + 6 * 2e-3 + 13e-3))  # 10 prompt tokens, then 3
    assert cost.of(3, 2, 1) == pytest.approx(5e-3 + 2e-3 + 4e-3)
    assert cost.of(0, 2, 0) == 0.0


def test_prompts_go_in_by_chunks_beside_others_decoding_and_count_in_the_step() -> None:
    asked = requests(1, 10, 4, np.array([0.5]))
    found = served("fixed:length=0", asked, num_slots=2, num_steps=100, prefill_chunk=4)
    assert found.num_steps == 6  # 4, 4 and 2 prompt tokens, which give one token, then three more
    assert found.tokens_per_s == pytest.approx(3 / 13e-3)


def test_the_oracle_pays_only_for_what_it_verifies() -> None:
    oracle = OracleLength(PartConfig(), context(3))
    model = RecordedAcceptance(TWO_OF_THREE, 1, seed=0)
    asked = requests(2, 1, 10**6)
    found = serve(oracle, CURVE, model, asked, num_slots=1, num_steps=20, foresees=True)
    assert found.verify_budget == 1  # the first token takes 2.5 ms and brings 0.9
    assert found.tokens_per_s == pytest.approx(1000)


def test_the_same_seed_gives_the_same_again() -> None:
    workload = Workload(prompt_tokens=20, output_tokens=20)
    asked = closed_loop(workload, 50, seed=3)
    one, other = (served("frugal", asked, num_slots=8, num_steps=200) for _ in range(2))
    assert one == other


def test_arrivals_are_what_they_are_called(tmp_path: Path) -> None:
    assert arrival_times("closed", 5, 0) is None
    steady, bursts = arrival_times("poisson:100", 5000, 0), arrival_times("bursts:100:10", 5000, 0)
    assert steady[-1] == pytest.approx(50, rel=0.1)
    assert bursts[-1] == pytest.approx(50, rel=0.3)
    assert len(np.unique(bursts)) == 500
    (tmp_path / "times.json").write_text(json.dumps([0, 0.5, 2]))
    assert arrival_times(str(tmp_path / "times.json"), 9, 0).tolist() == [0, 0.5, 2]


def test_requests_that_arrive_are_all_served_and_then_it_ends() -> None:
    workload = Workload(prompt_tokens=5, output_tokens=5)
    asked = open_loop(workload, arrival_times("poisson:20", 40, 0), seed=0)
    found = served("frugal", asked, num_slots=4, num_steps=100_000)
    assert found.num_steps < 1000


@pytest.mark.parametrize("given", ["poisson:0", "poisson:x", "bursts:1", "absent.json"])
def test_arrivals_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="arrivals"):
        arrival_times(given, 5, 0)


@pytest.mark.parametrize("times", [[], [1.0, 0.5], [-1.0], [float("nan")]])
def test_times_out_of_order_are_refused(times: list[float]) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        open_loop(Workload(), np.array(times), seed=0)


@pytest.mark.parametrize(
    "options",
    [{"shares": {"math": -1.0}}, {"shares": {"math": 0.0}}, {"shares": {"poem": 1.0}}, {"prompt_tokens": 0}],
)
def test_workloads_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Workload(**options)
