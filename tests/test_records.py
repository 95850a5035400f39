"""Records of measurements: what each says of how it was made, and what the README says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import records

RESULT = {
    "setting": "shortly",
    "runs": [
        {
            "strategy": "dflash",
            "temperature": 1.0,
            "accepted_length": {"mean": 2.0, "ci95": [1.9, 2.1]},
            "conditional_acceptance": [0.5, 0.25],
        }
    ],
}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records, empty."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def write(**device: str) -> list[str]:
    lines = records.write("training", RESULT, seed=3, warm_up="one request", repeats="4 prompts")
    record = records.newest("training")
    (path,) = records.RESULTS.iterdir()
    path.write_text(json.dumps({**record, **device}))
    return lines


def test_a_record_says_what_it_was_made_by_and_so_does_the_benchmark(results: Path) -> None:
    said = " ".join(write())
    record = json.loads(next(results.iterdir()).read_text())
    for key in ("device", "device_type", "commit", "seed", "warm_up", "repeats"):
        assert str(record[key]) in said
    for name in ("python", "torch", "transformers", "deepspec"):
        assert f"{name} {record['versions'][name]}" in said


def test_the_readme_says_that_there_was_no_gpu_only_when_there_was_none() -> None:
    write(device="Some CPU", device_type="cpu")
    assert "Some CPU" in records.tables()
    assert "Not measured on a GPU" in records.tables()
    write(device="Some GPU", device_type="cuda")
    assert "Some GPU" in records.tables()
    assert "Not measured on a GPU" not in records.tables()


def test_without_any_record_there_are_no_tables_to_agree_with() -> None:
    with pytest.raises(FileNotFoundError, match="make bench"):
        records.tables()


def test_the_table_of_divergences_counts_them_per_million_tokens() -> None:
    result = {
        "num_requests": 640,
        "num_tokens": 128,
        "batch": 32,
        "margin": 1e-4,
        "divergences": 2,
        "explained": 2,
        "largest_margin": 1e-6,
        "compared_tokens": 80_000,
    }
    records.write("divergence", result, seed=0, warm_up="none", repeats="once")
    assert "| 640 | 128 | 32 | 2 | 25.0 | 2 |" in records.tables()
    assert "medians" not in records.tables()


def test_the_table_of_objectives_has_the_best_and_the_published_one() -> None:
    def row(objective: str, steps: int, mean: float, temperature: float = 1.0) -> dict[str, object]:
        tau = {"mean": mean, "ci95": [mean - 0.1, mean + 0.1]}
        gain = {"mean": mean - 2, "ci95": [mean - 2.1, mean - 1.9]}
        head = {"objective": objective, "weights": "decay", "steps": steps, "temperature": temperature}
        return {**head, "accepted_length": tau, "gain": gain}

    better = [row(f"o{i}", 450, 2.1 + i / 100) for i in range(6)]
    rows = [row("paper", 150, 1.5), row("paper", 450, 2.0), *better, row("o0", 450, 9.0, temperature=0.0)]
    result = {"setting": "shortly", "summary": rows, "cells": []}
    records.write("objectives", result, seed=0, warm_up="none", repeats="one")
    table = records.tables()
    assert "| o5 | decay | - | 2.15, +0.15 (+0.05 to +0.25) |" in table
    assert "| paper | decay | 1.50, -0.50 (-0.60 to -0.40) | 2.00, +0.00 (-0.10 to +0.10) |" in table
    assert "| o0 |" not in table
    assert table.index("| o5 |") < table.index("| o1 |") < table.index("| paper |")
