"""The benchmark of training steps: both losses agree, rows and options are measured, a record and a table."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import records
import torch
import train_attention
import train_cached
import train_step
from train_step_problem import Case, EagerObjective, gradient_error, gradients, make_trainer

CPU = torch.device("cpu")
TINY = Case(vocab=300, hidden=128, layers=1, rows=2, length=32, anchors=8)
COMPILED = {"compile_s": 1.0, "compiled_over_plain": {"median": 1.0, "q1": 0.9, "q3": 1.1}}


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(train_step, "measure_machine", lambda *given: Machine)
    monkeypatch.setattr(train_step, "BASE", TINY)
    monkeypatch.setattr(train_step, "WIDE", {"tiny": {"hidden": 128, "rows": 2, "length": 32, "anchors": 8}})
    monkeypatch.setattr(train_attention, "SHAPES", ((64, 4, 3),))
    monkeypatch.setattr(train_attention, "compare", lambda *given: COMPARED)
    # What runs in a process of its own, in this one; and nothing is compiled.
    monkeypatch.setattr(
        train_step,
        "own_process",
        lambda what, case, repeats=0: train_step.added_mib(case, CPU) if what == "memory" else COMPILED,
    )


class Machine:
    flops = 1e9


COMPARED = {
    "length": 512,
    "anchors": 64,
    "passes": "forward",
    "compile_s": 1.0,
    "dense_ms": {"median": 2.0, "q1": 1.0, "q3": 3.0},
    "flex_ms": {"median": 4.0, "q1": 1.0, "q3": 5.0},
}


def test_everything_is_measured_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--vocabs", "300", "--anchors", "8", "16", "--wide", "tiny", "--repeats", "2"]
    assert train_step.main([*words, "--most-logits", "2500"]) == 0
    result = records.newest("train-step")["result"]
    assert 0 < result["gradient_error"] < 1e-4
    (row,) = result["rows"]
    assert row["anchors"] == 8
    assert row["mfu"] is None
    seconds = row["ms"]["ours"]["median"] / 1e3
    assert row["tokens_per_s"] == pytest.approx(2 * 32 / seconds, rel=1e-2)
    assert row["gigaflops_per_s"] == pytest.approx(row["step_gigaflops"] / seconds, rel=1e-1)
    assert [one["anchors"] for one in result["memory_mib"]] == [8, 16]
    table = records.tables()
    assert "| 300 | 16 |  |  |  |  |  |" in table
    assert "| 300 | 8 | " in table
    assert "forward 4 ms against 2 by SDPA" in table
    assert "record:" in capsys.readouterr().out


def test_the_plain_loss_is_the_same_loss_and_a_wrong_one_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradient_error(replace(TINY, loss="eager"), TINY, CPU) < 1e-4
    assert gradient_error(TINY, replace(TINY, recomputed=True), CPU) == 0
    learn = EagerObjective.learn

    def doubled(self: EagerObjective, *given: object, **named: object) -> object:
        return learn(self, *given, **(named | {"total_weight": named["total_weight"] / 2}))

    monkeypatch.setattr(EagerObjective, "learn", doubled)
    assert train_step.main(["--vocabs", "300"]) == 1
    assert "nothing is reported" in capsys.readouterr().out
    assert records.newest("train-step") is None


def test_eagle_3_trains_there_too() -> None:
    found = gradients(make_trainer(replace(TINY, strategy="eagle3"), CPU))
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_a_block_sees_the_text_before_its_anchor_and_itself() -> None:
    seen, tiles = train_attention.geometry(64, 4, 3, CPU)
    assert seen.shape == (12, 76)
    block = torch.arange(12) // 3
    assert seen[:, 64:].equal(block[:, None] == block)
    before = seen[:, :64].sum(dim=1)
    assert (before[1:] >= before[:-1]).all()
    assert before.min() >= 1
    assert (seen[:, :63].int() >= seen[:, 1:64].int()).all()
    assert tiles.sparsity() <= 0


@pytest.mark.parametrize(("peak", "code"), [(12.5, 0), (23.0, 1)])
def test_a_cached_run_may_take_24_gigabytes(monkeypatch: pytest.MonkeyPatch, peak: float, code: int) -> None:
    found = {
        "target": train_cached.SHAPE,
        "drafter": train_cached.DRAFTER,
        "text": train_cached.TEXT,
        "train": train_cached.TRAIN,
        "training": {"peak_gib": peak, "seconds": 100.0},
    }
    monkeypatch.setattr(train_step, "measure_cached", lambda: found)
    assert train_step.main(["--cached"]) == code
    assert "at V = 151,936 and hidden 2,560" in records.tables()
    assert f"took {peak:.1f} GiB at its peak" in records.tables()


def test_each_command_is_a_process_whose_peak_is_taken() -> None:
    held, seconds = train_cached.peak([sys.executable, "-c", "b'1' * 2**29"])
    assert 0.5 < held < 8  # never less than what this process holds
    assert seconds > 0
    with pytest.raises(SystemExit, match="ended with 3"):
        train_cached.peak([sys.executable, "-c", "raise SystemExit(3)"])
