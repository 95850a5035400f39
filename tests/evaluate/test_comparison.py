"""Drafters side by side on a tiny random target: same prompts and seeds, paired differences, one target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deepspec import compare
from deepspec.config import EvalConfig
from deepspec.errors import ConfigError
from deepspec.evaluate import Comparison, comparison, evaluate
from deepspec.records import TrainingCost
from deepspec.runs import Run
from deepspec.train.assemble import assemble
from tests.tiny_runs import save_prompts, strategy, untrained_run

RUN_KEYS = {
    "name",
    "strategy",
    "accepted_length",
    "conditional_acceptance",
    "draft_ms",
    "verify_ms",
    "speedup",
    "train_tokens",
    "train_seconds",
    "parameters",
}
MORE_RUN_KEYS = {
    "counts",
    "draft_length",
    "predicted_speedup",
    "prompts",
    "speedup_batch16",
    "step",
    "tasks",
    "tokens_per_s",
    "train_flops",
    "train_flops_target",
}
PAIR_KEYS = {"a", "b", "difference", "ratio", "ratio_ci95"}


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    """Two strategies for one target; the second says what its training took."""
    first = untrained_run(max_position_embeddings=512)
    chosen = strategy("dflash", draft_length=5)
    target = first.target
    parts = assemble(chosen, target, device=target.device, dtype=target.dtype, seed=1)
    cost = TrainingCost(1000, 2.5, 10**9, 10**8)
    second = replace(first, path=Path("elsewhere/other"), parts=parts, cost=cost)
    return first, second


@pytest.fixture(scope="module")
def task_file(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tasks")
    return f"mine={save_prompts(folder / 'mine.jsonl', [f'prompt number {i}' for i in range(5)])}"


@pytest.fixture(scope="module")
def found(runs, task_file) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        few_timings(patch)
        return compare(runs, tasks=[task_file], config=CONFIG)


def few_timings(patch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCH", 2), ("_NUM_ALONE", 2), ("_NUM_BLOCKS", 1)):
        patch.setattr(comparison, name, value)


CONFIG = EvalConfig(num_prompts=4, max_tokens=8, batch=3)


def test_the_comparison_has_the_documented_keys_and_is_json(found):
    found = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"schema", "runs", "paired"} <= set(found)
    assert found["schema"] == 1
    assert [set(run) for run in found["runs"]] == [RUN_KEYS | MORE_RUN_KEYS] * 2
    assert [(run["name"], run["strategy"]) for run in found["runs"]] == [
        ("nowhere", "dspark"),
        ("other", "dflash"),
    ]
    assert [len(run["conditional_acceptance"]) for run in found["runs"]] == [3, 5]
    [pair] = found["paired"]
    assert set(pair) == PAIR_KEYS
    assert (pair["a"], pair["b"]) == ("nowhere", "other")
    means = [run["accepted_length"]["mean"] for run in found["runs"]]
    assert pair["difference"]["mean"] == pytest.approx(means[0] - means[1])
    assert pair["ratio"] == pytest.approx(means[0] / means[1])
    low, high = pair["difference"]["ci95"]
    assert low <= pair["difference"]["mean"] <= high
    assert found["num_prompts"] == len(found["runs"][0]["prompts"].split()) == 4


def test_what_training_took_is_told_where_it_is_known(runs, found):
    known, parameters = [], []
    for run in found.to_json()["runs"]:
        known.append([run[f"train_{key}"] for key in ("tokens", "seconds", "flops", "flops_target")])
        parameters.append(run["parameters"])
    assert known == [[None] * 4, [1000, 2.5, 10**9, 10**8]]
    assert parameters == [sum(w.numel() for w in run.parts.modules().parameters()) for run in runs]


def test_a_run_and_its_copy_meet_the_same_prompts_and_seeds(runs, task_file, monkeypatch):
    few_timings(monkeypatch)
    run = runs[0]
    found = compare([run, replace(run, path=Path("copy"))], tasks=[task_file, "prose"], config=CONFIG)
    one, other = found.runs
    assert one.lengths == other.lengths
    assert len(one.lengths) == 8
    [pair] = found.paired
    assert (pair.lengths.difference.low, pair.lengths.difference.high) == (0, 0)
    assert pair.lengths.ratio.mean == 1
    alone = evaluate(run, tasks=[task_file, "prose"], config=CONFIG)
    assert (one.report.accepted_length, one.report.rates) == (alone.accepted_length, alone.rates)


def test_folders_of_one_name_go_by_their_paths(runs, task_file, monkeypatch):
    few_timings(monkeypatch)
    three = [replace(runs[0], path=Path(path)) for path in ("a/x", "b/x", "c")]
    found = compare(three, tasks=[task_file], config=CONFIG)
    assert [run.name for run in found.runs] == ["a/x", "b/x", "c"]
    assert [(pair.a, pair.b) for pair in found.paired] == [("a/x", "b/x"), ("a/x", "c"), ("b/x", "c")]


def test_what_cannot_be_compared_is_refused(runs):
    other = replace(runs[1], target=replace(runs[1].target, name="big", fingerprint="0123456789"))
    with pytest.raises(
        ConfigError, match=r"targets differ: .*nowhere is for 'tiny' .*for 'big' \(01234567\)"
    ):
        compare([runs[0], other])
    with pytest.raises(ConfigError, match="nowhere is given twice"):
        compare([runs[0], runs[0]])
    with pytest.raises(ConfigError, match="no run was given"):
        compare([])
