"""Recorded rounds: what a trace says of them, and that they are replayed request by request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.config import EvalConfig
from deepspec.errors import ConfigError, DataError
from deepspec.evaluate.measure import decode_tasks
from deepspec.redecoding import redecoded
from deepspec.rounds import sigmoid
from deepspec.simulate import RecordedAcceptance, RecordedRounds, read_rounds
from deepspec.simulate.recorded import LEAST_ROUNDS
from deepspec.trace import COLUMNS, read_trace
from tests.command_line import run
from tests.tiny_runs import untrained_run

PROMPTS = {"first": [(5, 6, 7), (9,) * 20, (3, 4)], "second": [(8, 9), (5,), (7, 7), (6, 3)]}


def traced(folder: Path, max_tokens: int, **parts: object) -> Path:
    one, path = untrained_run(), folder / "rounds.parquet"
    config = EvalConfig(max_tokens=max_tokens, batch=2)
    decode_tasks(one.target, redecoded(one.parts, **parts), PROMPTS, config, trace=path)
    return path


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traced(tmp_path_factory.mktemp("traced"), 200)


def test_a_traces_rounds_are_those_of_each_request_in_order_and_scaled(trace: Path) -> None:
    rounds, stored = read_rounds(trace), read_trace(trace)
    assert len(rounds.accepted) == len(stored)
    assert (np.diff(rounds.requests) >= 0).all()
    of_first = (stored.columns["task"] == "first") & (stored.columns["request_id"] == 1)
    mine = rounds.requests == 1
    assert rounds.accepted[mine].tolist() == stored.columns["accepted"][of_first].tolist()
    taken_at_their_word = sigmoid(stored.confidence[of_first])
    assert (rounds.conditional[mine].argsort(axis=0) == taken_at_their_word.argsort(axis=0)).all()
    assert not np.allclose(rounds.conditional[mine], taken_at_their_word)


def test_a_replay_goes_through_a_requests_rounds_and_begins_again() -> None:
    rounds = RecordedRounds(np.full((5, 2), 0.5), np.array([0, 1, 2, 0, 1]), np.array([7, 7, 7, 8, 8]))
    model, slots = RecordedAcceptance(rounds, 40, seed=0), np.arange(40)
    model.start(slots, 0 * slots)
    seen = np.array([model.round(slots).accepted for _ in range(6)])
    assert {tuple(one) for one in seen.T.tolist()} == {
        *((0, 1, 2) * 2, (1, 2, 0) * 2, (2, 0, 1) * 2),
        *((0, 1) * 3, (1, 0) * 3),
    }
    assert rounds.shortened(1).accepted.tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("confidences", "accepted", "complaint"),
    [
        ([[0.9, 1.5]], [1], "recorded round 0"),
        ([[0.9, float("nan")]], [1], "recorded round 0"),
        ([[0.9, 0.5]], [3], "recorded round 0"),
        ([[0.9, 0.5]], [1, 1], "give .N, G., .N. and .N."),
    ],
)
def test_recordings_out_of_range_are_refused(confidences: object, accepted: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        RecordedRounds(np.array(confidences), np.array(accepted), np.array([0]))


def test_simulate_replays_a_trace(trace: Path) -> None:
    ran = run(
        *("simulate", "--trace", str(trace), "--policy", "fixed", "--policy", "frugal"),
        *("--concurrency", "4", "--steps", "400", "--json"),
    )
    policies = json.loads(ran.out)["policies"]
    assert [one["policy"] for one in policies] == ["fixed", "frugal"]
    assert policies[0]["points"][0]["verify_budget"] == 4  # three drafted tokens and the anchor
    fewer = run("simulate", "--trace", str(trace), "--draft-length", "2", "--policy", "fixed", "--json")
    assert json.loads(fewer.out)["policies"][0]["points"][0]["verify_budget"] == 3


def emptied(trace: Path, path: Path) -> None:
    pq.write_table(pq.read_table(trace).slice(0, 0), path)


def without_a_column(trace: Path, path: Path) -> None:
    pq.write_table(pq.read_table(trace).drop_columns(["accepted"]), path)


def without_confidences(trace: Path, path: Path) -> None:
    table = pq.read_table(trace)
    nothing = pa.array([[]] * len(table), COLUMNS["confidence"][0])
    place = table.column_names.index("confidence")
    pq.write_table(table.set_column(place, "confidence", nothing), path)


def of_no_bytes(trace: Path, path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (emptied, f"has 0 rounds and a replay needs {LEAST_ROUNDS}: {LEAST_ROUNDS} are missing"),
        (without_a_column, "lacks column 'accepted'; give a file of `eval --trace`"),
        (without_confidences, "has rounds without confidences"),
        (of_no_bytes, "cannot be read"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused_in_one_line(
    spoil: object, complaint: str, trace: Path, tmp_path: Path
) -> None:
    spoil(trace, tmp_path / "spoilt.parquet")
    ran = run("simulate", "--trace", str(tmp_path / "spoilt.parquet"))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: trace ")
    assert complaint in ran.err


def test_no_more_is_drafted_than_was_recorded(trace: Path) -> None:
    ran = run("simulate", "--trace", str(trace), "--draft-length", "4")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "allowed are 1..3" in ran.err


def test_rounds_that_left_tokens_out_are_refused(tmp_path: Path) -> None:
    cut = {"type": "threshold", "threshold": 0.9}
    with pytest.raises(DataError, match="verified fewer than 3 tokens; write one that verifies all"):
        read_rounds(traced(tmp_path, 24, policy=cut))
