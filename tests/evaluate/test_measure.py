"""The whole evaluation on a tiny random target: the report's keys, its numbers, and bad input."""

from __future__ import annotations

import dataclasses
import json

import pytest

from deepspec.config import EvalConfig
from deepspec.engine import Engine
from deepspec.errors import ConfigError, DataError, TargetError
from deepspec.evaluate import evaluate
from deepspec.evaluate.acceptance import tokens_gained
from deepspec.evaluate.decoding import decode_rounds, sampling_params
from deepspec.evaluate.speed import measure_speed
from deepspec.evaluate.tasks import collect_prompts
from deepspec.redecoding import redecoded
from tests.tiny_runs import EVAL_KEYS, save_prompts, untrained_run

EXTRA_KEYS = {"counts", "predicted_speedup", "target_ms", "tokens_per_s_transformers"} | {
    "verifier",
    "verifier_gain",
    "verify_kernel",
}


@pytest.fixture(scope="module")
def run():
    return untrained_run(max_position_embeddings=512)


@pytest.fixture
def task_file(tmp_path):
    return f"mine={save_prompts(tmp_path / 'mine.jsonl', [f'prompt number {i}' for i in range(5)])}"


def small(**changes):
    return EvalConfig(**{"num_prompts": 4, "max_tokens": 12, "batch": 3, **changes})


def test_the_report_has_the_documented_keys_and_is_json(run, task_file):
    report = evaluate(run, tasks=[task_file], config=small(), against_transformers=True)
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(found) == EVAL_KEYS | EXTRA_KEYS
    assert (found["schema"], found["strategy"], found["target"]) == (1, "dspark", "tiny")
    assert (found["draft_length"], found["temperature"], found["device"]) == (3, 1.0, "cpu")
    assert (found["verify_kernel"], found["verifier_gain"]) == ("reference", None)
    assert set(found["accepted_length"]) == {"mean", "ci95"}
    low, high = found["accepted_length"]["ci95"]
    assert 1 <= low <= found["accepted_length"]["mean"] <= high <= 4
    assert len(found["conditional_acceptance"]) == len(found["survival"]) == 3
    assert found["counts"]["observed"][0] == found["num_rounds"]
    assert found["num_prompts"] == found["tasks"]["mine"]["num_prompts"] == 4
    assert found["tasks"]["mine"]["accepted_length"] == found["accepted_length"]["mean"]
    for key in ("tokens_per_s", "tokens_per_s_plain", "tokens_per_s_transformers", "speedup", "verify_ms"):
        assert found[key] > 0
    assert {"python", "torch", "transformers", "deepspec"} <= set(found["versions"])


def test_without_asking_transformers_is_not_timed(run, task_file):
    assert evaluate(run, tasks=[task_file], config=small()).tokens_per_s_transformers is None


def test_acceptance_is_the_same_each_time_and_each_task_is_reported(run, task_file):
    config = small(num_prompts=3)
    first = evaluate(run, tasks=["prose"], task_files=[task_file], config=config)
    again = evaluate(run, tasks=["prose", task_file], config=config)
    assert list(first.tasks) == ["prose", "mine"]
    assert (first.accepted_length, first.rates, first.tasks) == (
        again.accepted_length,
        again.rates,
        again.tasks,
    )


def test_task_files_alone_replace_the_configured_tasks(run, task_file):
    assert list(evaluate(run, task_files=[task_file], config=small()).tasks) == ["mine"]


def test_the_rounds_of_a_greedy_request_add_up_to_plain_decoding(run):
    prompts = [tuple(range(3, 20))]
    rounds = decode_rounds(run.target, run.parts, prompts, small(temperature=0.0))[0]
    plain = Engine(run.target, None).run(prompts, sampling_params(small(temperature=0.0), max_tokens=12))
    emitted = [token for round_ in rounds for token in round_.tokens]
    assert emitted == list(plain[0].tokens[1:])
    assert sum(map(tokens_gained, rounds)) >= len(emitted)


def test_rounds_belong_to_the_prompts_in_their_order(run):
    prompts = [(5,) * 4, (6,) * 30, (7,) * 9, (8,) * 2]
    together = decode_rounds(run.target, run.parts, prompts, small(batch=2, temperature=0.0))
    for prompt, rounds in zip(prompts, together, strict=True):
        alone = decode_rounds(run.target, run.parts, [prompt], small(temperature=0.0))[0]
        assert [r.tokens for r in rounds] == [r.tokens for r in alone]


def test_prompts_without_room_are_left_out_and_none_at_all_is_an_error(run, tmp_path, caplog):
    file = save_prompts(tmp_path / "long.jsonl", ["x" * 100, "x" * 505])
    prompts = collect_prompts([f"long={file}"], run.target, small())
    assert [len(prompt) for prompt in prompts["long"]] == [100]
    assert "1 of 2 prompts left out" in caplog.text
    with pytest.raises(DataError, match=r"task 'long': none of 2 prompts fits .* lower eval\.max_tokens"):
        collect_prompts([f"long={file}"], run.target, small(max_tokens=450))


def test_tasks_that_cannot_be_are_refused(run, task_file):
    with pytest.raises(ConfigError, match="unknown task 'stdlb'.*did you mean 'stdlib'"):
        evaluate(run, tasks=["stdlb"], config=small())
    with pytest.raises(ConfigError, match="task 'mine' is given twice"):
        evaluate(run, tasks=[task_file, task_file], config=small())
    with pytest.raises(ConfigError, match=r"write NAME=FILE\.jsonl"):
        evaluate(run, tasks=["=x.jsonl"], config=small())
    with pytest.raises(ConfigError, match="no task was given"):
        evaluate(run, tasks=[], config=small())
    with pytest.raises(DataError, match=r"missing\.jsonl: cannot be read"):
        evaluate(run, tasks=["mine=missing.jsonl"], config=small())


def test_a_target_without_a_tokenizer_is_refused(run, task_file):
    bare = dataclasses.replace(run.target, tokenizer=None)
    with pytest.raises(TargetError, match="has no tokenizer"):
        collect_prompts([task_file], bare, small())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_after_timing_transformers_the_target_decodes_as_before(run, temperature):
    prompts = [(9, 8, 7), (3, 2)]
    params = sampling_params(small(temperature=temperature), max_tokens=6)
    before = Engine(run.target, None).run(prompts, params)
    [speed] = measure_speed(run.target, [run.parts], prompts, params, against_transformers=True)
    assert speed.tokens_per_s_transformers > 0
    assert speed.target_ms > 0
    assert Engine(run.target, None).run(prompts, params) == before


def test_in_blocks_the_same_tokens_are_timed_and_every_drafter_meets_the_same_plain_times(run):
    prompts = [(9, 8, 7), (3, 2), (4, 4), (5,)]
    params = sampling_params(small(), max_tokens=6)
    first, second = measure_speed(run.target, [run.parts, run.parts], prompts, params, batch=2)
    assert {name: len(found) for name, found in first.seconds.items()} == {"speculative": 2, "plain": 2}
    assert first.seconds["plain"] == second.seconds["plain"]
    assert first.seconds["speculative"] != second.seconds["speculative"]
    pairs = zip(first.seconds["plain"], first.seconds["speculative"], strict=True)
    assert first.speedup == pytest.approx(sum(slow / fast for slow, fast in pairs) / 2)
    assert first.tokens_per_s == pytest.approx(sum(12 / t for t in first.seconds["speculative"]) / 2)


def test_another_verifier_decodes_the_same_prompts_and_seeds(run, task_file):
    config = EvalConfig(num_prompts=3, max_tokens=8, batch=3)
    found = evaluate(run, tasks=[task_file], config=config, against_verifier="delta").to_json()
    gain = found["verifier_gain"]
    other = evaluate(
        dataclasses.replace(run, parts=redecoded(run.parts, verifier="delta")),
        tasks=[task_file],
        config=config,
    ).to_json()
    assert (gain["against"], other["verifier"], found["verifier"]) == (
        "delta",
        "delta",
        run.parts.verifier.name,
    )
    means = [one["accepted_length"]["mean"] for one in (found, other)]
    assert gain["difference"]["mean"] == pytest.approx(means[0] - means[1])
    assert gain["ratio"]["mean"] == pytest.approx(means[0] / means[1])
    with pytest.raises(ConfigError, match="blok"):
        evaluate(run, tasks=[task_file], config=config, against_verifier="blok")
