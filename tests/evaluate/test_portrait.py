"""What the page of a run shows, measured on a tiny random target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deepspec.config import EvalConfig
from deepspec.curves import DraftCost, SpsCurve
from deepspec.evaluate import calibration, portraits_json, portray
from deepspec.evaluate.portrait import PLAIN_POLICIES, POLICIES, THRESHOLDS
from deepspec.redecoding import redecoded
from deepspec.report.page import report_html
from deepspec.runs import Run
from tests.command_line import run as command
from tests.tiny_runs import save_prompts, untrained_run

CURVE = SpsCurve(
    verify_tokens=(1, 8, 64),
    steps_per_s=(90.0, 60.0, 20.0),
    num_requests=4,
    model="tiny",
    draft=DraftCost(seconds=1e-3),
)
CONFIG = EvalConfig(max_tokens=60, batch=4)


@pytest.fixture(scope="module")
def run() -> Run:
    return untrained_run()


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"mine={save_prompts(tmp_path / 'mine.jsonl', ['abc', 'hello', 'def f', 'x = 1'])}"


def test_a_portrait_has_all_that_a_page_shows(run: Run, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LEAST_ROUNDS", 20)
    found = portray(run, "mine", CURVE, tasks=[task], config=CONFIG)
    assert found.calibration is not None
    assert found.reliability is not None
    for way in ("before", "after"):
        bins = found.reliability[way]
        assert sum(bins["count"]) % 3 == 0  # three positions of every round
        assert all(0 <= share <= 1 for share in (*bins["predicted"], *bins["happened"]))
    assert [point["threshold"] for point in found.sweep] == list(THRESHOLDS)
    assert found.sweep[0]["verified"] == 3
    verified = [point["verified"] for point in found.sweep]
    assert verified == sorted(verified, reverse=True)
    assert [one["policy"] for one in found.loads] == list(POLICIES)
    assert [point["concurrency"] for point in found.loads[0]["points"]] == [1, 2, 4]
    document = portraits_json([found])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert "Threshold sweep" in report_html(document)


def test_without_confidence_or_rounds_enough_the_rest_is_measured(run: Run, task: str) -> None:
    few = portray(run, "mine", CURVE, tasks=[task], config=CONFIG)
    assert (few.calibration, few.reliability, list(few.sweep)) == (None, None, [])
    assert [one["policy"] for one in few.loads] == list(PLAIN_POLICIES)
    assert few.evaluation.num_rounds > 0


def test_a_run_with_a_policy_of_its_own_is_measured_with_it_and_at_full_length(run: Run, task: str) -> None:
    short = replace(run, parts=redecoded(run.parts, policy={"type": "fixed", "length": 1}))
    found = portray(short, "mine", CURVE, tasks=[task], config=CONFIG)
    assert found.evaluation.rates.observed[1:] == (0, 0)
    whole = next(one for one in found.loads if one["policy"] == "fixed")
    assert whole["points"][0]["draft_length"] == 3


def test_bad_input_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for words, said in (
        (["demo", "-o", str(tmp_path / "no" / "page.html")], "give a file in a folder that exists"),
        (["demo", "--curve", str(tmp_path / "absent.json")], "cannot be read"),
        (["demo", "demo"], "given twice"),
    ):
        ran = command("report", *words)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert said in ran.err
