"""``profile``: which rounds it times, where it looks closer, what it writes and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from deepspec.curves import SpsCurve
from deepspec.errors import ConfigError
from deepspec.evaluate import ProfileConfig, profile
from deepspec.evaluate.profile import _least_squares
from deepspec.evaluate.round_times import RoundShape, RoundTime, RoundTimer, step_parts
from tests.command_line import run
from tests.exact_statistics.compositions import build, tiny_target

TARGET = tiny_target(12)
SMALL = ProfileConfig(num_requests=2, context_length=6, prompt_tokens=8, repeats=2)


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [
        (1, RoundShape(1, 0, 0)),
        (3, RoundShape(3, 0, 0)),
        (4, RoundShape(4, 0, 0)),
        (5, RoundShape(4, 1, 1)),
        (8, RoundShape(4, 1, 4)),
        (16, RoundShape(4, 3, 12)),
        (20, RoundShape(4, 3, 12, 4)),
    ],
)
def test_tokens_are_anchors_first_then_drafts_then_prompts(tokens: int, shape: RoundShape) -> None:
    assert RoundShape.of_tokens(tokens, 4, 3) == shape


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 9, 16])
def test_a_timed_round_has_the_tokens_that_were_asked_for(tokens: int) -> None:
    timer = RoundTimer(
        TARGET,
        step_parts(TARGET.info, 3),
        num_requests=2,
        context_length=6,
        prompt_tokens=8,
        repeats=3,
    )
    for _ in range(2):  # requests of the first time are gone
        found = timer.time(RoundShape.of_tokens(tokens, 2, 3))
        assert [one.tokens for one in found] == [tokens] * 3
        assert all(one.seconds > 0 for one in found)


def made_times(monkeypatch: pytest.MonkeyPatch, seconds: object) -> list[int]:
    """Rounds take what ``seconds`` says of their B; the B's that were asked for, in order."""
    asked: list[int] = []

    def time(self: RoundTimer, shape: RoundShape) -> list[RoundTime]:
        tokens = shape.num_requests + shape.verified + shape.prompt_tokens
        asked.append(tokens)
        return [RoundTime(tokens, seconds(tokens))] * 2  # type: ignore[operator]

    monkeypatch.setattr(RoundTimer, "time", time)
    return asked


def test_it_looks_closer_where_the_curve_bends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made_times(monkeypatch, lambda tokens: 1.0 if tokens <= 37 else 2.0)
    config = ProfileConfig(num_requests=8, context_length=6, prompt_tokens=64, repeats=2)
    found = profile(TARGET, draft_length=7, config=config)
    speeds = dict(zip(found.verify_tokens, found.steps_per_s, strict=True))
    assert speeds[37] == 1.0
    assert speeds[38] == 0.5
    assert len(found.verify_tokens) < 25
    assert sorted(asked) == sorted([*found.verify_tokens] * 2)
    assert asked[-len(speeds) :] == sorted(speeds, reverse=True)


def test_on_a_straight_line_one_point_between_two_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    made_times(monkeypatch, lambda tokens: 1.0 + tokens)
    found = profile(TARGET, draft_length=3, config=SMALL)
    assert found.verify_tokens == (1, 2, 3, 4, 6, 8, 12, 16)
    assert found.steps_per_s == pytest.approx([1 / (1 + tokens) for tokens in found.verify_tokens])
    assert found.spread == (0.0,) * 8


def test_times_that_differ_much_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns = iter(range(10_000))
    made_times(monkeypatch, lambda tokens: 1.0 + next(turns) % 2)
    profile(TARGET, draft_length=3, config=SMALL)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "something else runs on this machine" in caplog.text


def test_drafting_is_what_whole_rounds_take_longer() -> None:
    rows = np.array([(1.0, length, num * length) for num in (1, 4, 8) for length in (1, 4, 7)])
    assert _least_squares(rows, rows @ [5.0, 2.0, 0.5]) == pytest.approx([5.0, 2.0, 0.5])
    assert _least_squares(rows, rows @ [5.0, -0.1, 0.5])[1] == 0.0
    assert _least_squares(rows, rows @ [-5.0, -2.0, -0.5]) == [0.0, 0.0, 0.0]


def test_a_profile_says_what_it_holds_for_and_reads_back(tmp_path: Path) -> None:
    parts = build(TARGET.info, "dspark", 3, TARGET.dtype)
    found = profile(TARGET, parts, config=SMALL)
    assert (found.model, found.dtype, found.modelled) == (TARGET.name, "float64", False)
    assert (found.num_requests, found.context_length) == (2, 6)
    assert found.verify_tokens[-1] == 2 * 4 + 8
    assert "torch" in found.versions
    assert found.hardware
    assert found.draft is not None
    (tmp_path / "sps.json").write_text(json.dumps(found.to_json()))
    assert SpsCurve.read(tmp_path / "sps.json") == found


def test_the_command_writes_the_curve_and_sglangs_file(tmp_path: Path) -> None:
    curve, sglang = tmp_path / "sps.json", tmp_path / "sglang.json"
    words = ("--requests", "1", "--context", "8", "--prompt-tokens", "0", "--repeats", "2")
    ran = run("profile", "--target", "demo", *words, "-o", str(curve), "--sglang", str(sglang), "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert set(found) >= {
        "schema",
        "verify_tokens",
        "steps_per_s",
        "modelled",
        "hardware",
        "model",
        "dtype",
        "versions",
    }
    assert (found["schema"], found["model"], found["modelled"]) == (1, "demo", False)
    assert json.loads(curve.read_text()) == found
    assert json.loads(sglang.read_text()) == {
        "sample_batch_tokens": found["verify_tokens"],
        "sample_steps_per_sec": found["steps_per_s"],
        "max_batch_tokens": 8,
    }


@pytest.mark.parametrize("flag", ["--output", "--sglang"])
def test_where_no_file_can_be_is_said_before_anything_is_measured(flag: str) -> None:
    ran = run("profile", "--target", "no/such-target", flag, "absent/sps.json")
    assert (ran.code, ran.out) == (2, "")
    assert f"{flag} absent/sps.json: give a file in a folder that exists" in ran.err


@pytest.mark.parametrize("wrong", ["num_requests", "context_length", "repeats", "most_points"])
def test_sizes_that_measure_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"{wrong} is 0; allowed is an integer >= [12]"):
        ProfileConfig(**{wrong: 0})


def test_a_target_without_drafts_to_verify_is_refused() -> None:
    with pytest.raises(ConfigError, match="draft_length is 0; allowed is an integer >= 1"):
        profile(TARGET, draft_length=0, config=SMALL)
