"""The benchmark of draft lengths: rounds of all lengths by turns, a model beside them, and a record."""

from __future__ import annotations

from pathlib import Path

import draft_length
import pytest
import records
import torch

import deepspec
from deepspec import Strategy


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(draft_length, "copy_bandwidth", lambda device: 1e10)


def test_every_cell_is_measured_and_modelled_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert draft_length.main(["--requests", "1", "2", "--lengths", "2", "5", "--rounds", "4"]) == 0
    result = records.newest("draft-length")["result"]
    assert [(one["requests"], one["draft_length"]) for one in result["cells"]] == [
        (1, 2),
        (1, 5),
        (2, 2),
        (2, 5),
    ]
    for cell in result["cells"]:
        for name in ("draft_ms", "verify_ms"):
            assert 0 < cell[name]["q1"] <= cell[name]["median"] <= cell[name]["q3"]
            assert cell["model"][name] > 0
        assert cell["round_ms"]["median"] >= cell["draft_ms"]["median"]
    assert [one["requests"] for one in result["added"]] == [1, 2]
    said = capsys.readouterr().out
    assert "drafting 5 instead of 2 adds" in said
    assert "0.2 to 1.3 %" in said
    (*_, last) = [line for line in records.tables().splitlines() if line.startswith("| 2 | 5 |")]
    assert last.count("%") == 3


def test_the_model_takes_arithmetic_or_weights_whichever_lasts() -> None:
    machine = draft_length.Machine(flops=1e9, bandwidth=1e6)
    assert machine.ms(rows=1, weights=1000, itemsize=4) == pytest.approx(4.0)
    assert machine.ms(rows=10_000, weights=1000, itemsize=4) == pytest.approx(20.0)


def test_the_model_grows_with_what_is_drafted_as_the_head_does() -> None:
    target = deepspec.load("demo").target
    parts = Strategy.named("dspark").replace(draft_length=4).build(target.info)
    slow = draft_length.Machine(flops=1e30, bandwidth=1e9)  # weights alone count
    four, eight = (draft_length.modelled(slow, target, parts, 1, length) for length in (4, 8))
    assert four["verify_ms"] == eight["verify_ms"]
    head = parts.head.output_weight.numel() * 4 / 1e6
    assert eight["draft_ms"] - four["draft_ms"] == pytest.approx(4 * head)


def test_the_machine_is_measured_in_operations_and_bytes_a_second() -> None:
    machine = draft_length.measure_machine(torch.device("cpu"), torch.float32)
    assert machine.flops > 1e8
    assert machine.bandwidth == 1e10
