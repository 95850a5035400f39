"""A trace has the rounds that were decoded, with the confidences and chances of their very rows."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.config import EvalConfig
from deepspec.errors import DataError, ResourceError
from deepspec.evaluate.measure import decode_tasks
from deepspec.redecoding import redecoded
from deepspec.runs import Run
from deepspec.trace import COLUMNS, Trace, read_trace
from tests.tiny_runs import untrained_run

PROMPTS = {"first": [(5, 6, 7), (9,) * 20, (3, 4)], "second": [(8, 9)]}
CONFIG = EvalConfig(max_tokens=24, batch=2)


@pytest.fixture(scope="module")
def run() -> Run:
    return untrained_run()


def traced(run: Run, folder: Path, **parts: object) -> tuple[Trace, dict[str, list]]:
    path = folder / "t.parquet"
    return_value = decode_tasks(
        run.target, redecoded(run.parts, **parts), PROMPTS, CONFIG, trace=path, timeline=folder / "t.json"
    )
    return read_trace(path), return_value


def test_rows_are_the_rounds_of_each_request(run: Run, tmp_path: Path) -> None:
    trace, rounds = traced(run, tmp_path, verifier="token")
    assert (trace.header.verifier, trace.header.draft_length, trace.header.policy) == ("token", 3, "fixed")
    for task, of_task in rounds.items():
        for number, of_request in enumerate(of_task):
            rows = (trace.columns["task"] == task) & (trace.columns["request_id"] == number)
            for name in ("drafted", "verified", "accepted", "emitted"):
                assert trace.columns[name][rows].tolist() == [getattr(one, name) for one in of_request]
            gained = trace.columns["accepted"][rows][:-1] + 1
            assert np.diff(trace.columns["position"][rows]).tolist() == gained.tolist()
    assert sum(len(one) for found in rounds.values() for one in found) == len(trace)


def test_the_chances_are_those_that_the_token_rule_accepts_with(run: Run, tmp_path: Path) -> None:
    trace, _ = traced(run, tmp_path, verifier="token")
    assert bool(((trace.chances > 0) & (trace.chances <= 1 + 1e-6)).all())
    soft, hard = trace.rounds(soft=True), trace.rounds()
    looked = hard.looked & soft.looked
    assert abs(soft.kept[looked].mean() - hard.kept[looked].mean()) < 4 * 0.5 / looked.sum() ** 0.5
    assert not np.isnan(trace.confidence).any()


def test_what_was_not_verified_has_no_chance(run: Run, tmp_path: Path) -> None:
    cut = {"type": "threshold", "threshold": 0.9}
    trace, _ = traced(run, tmp_path, policy=cut)
    verified = trace.columns["verified"]
    assert verified.max() < 3
    assert (np.isnan(trace.chances) == (np.arange(3) >= verified[:, None])).all()
    assert not np.isnan(trace.confidence).any()


def test_a_traced_decoding_is_the_same_decoding(run: Run, tmp_path: Path) -> None:
    _, with_trace = traced(run, tmp_path)
    assert with_trace == decode_tasks(run.target, redecoded(run.parts), PROMPTS, CONFIG)


def test_a_timeline_lays_the_steps_end_to_end(run: Run, tmp_path: Path) -> None:
    traced(run, tmp_path)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {span["name"] for span in spans} == {"draft", "verify", "other"}
    for before, after in pairwise(spans):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])


def test_files_that_are_no_traces_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no trace")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    for name, reason in (("text", "cannot be read"), ("other", "metadata"), ("absent", "cannot be read")):
        with pytest.raises(DataError, match=reason) as raised:
            read_trace(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(ResourceError, match="choose another --trace"):
        decode_tasks(run.target, run.parts, PROMPTS, CONFIG, trace=tmp_path / "no" / "folder.parquet")
    assert len(COLUMNS) == 18
