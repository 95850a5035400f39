"""Grids of measurements are saved cell by cell and gone on with; what is made of the cells of objectives."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import grid
import objectives
import pytest
import records

from deepspec.plugins import create_plugin_manager, resolve_part

CELLS = [{"name": name, "steps": steps} for steps in (10, 20) for name in "ab"]
PROTOCOL = {"seed": 0, "warm_up": "none", "repeats": "one"}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records, empty."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def run(*arguments: str, setting: str = "tiny", measure=lambda cell: {"value": cell["steps"]}):
    parser = argparse.ArgumentParser()
    grid.add_options(parser)
    return grid.run_grid(
        "toy",
        setting,
        CELLS,
        measure,
        len,
        options=parser.parse_args(arguments),
        cost=lambda cell: float(cell["steps"]),
        protocol=PROTOCOL,
    )


def test_a_grid_goes_on_where_it_was_left_and_keeps_its_date(results: Path) -> None:
    done, _ = run("--cells", "1")
    assert [cell["name"] for cell in done] == ["a"]
    (path,) = results.iterdir()
    begun = json.loads(path.read_text()) | {"date": "2026-01-02"}
    path.unlink()
    (results / "2026-01-02-toy.json").write_text(json.dumps(begun))
    measured = []
    done, lines = run(measure=lambda cell: measured.append(cell) or {"value": 0})
    assert measured == CELLS[1:]
    assert [path.name for path in results.iterdir()] == ["2026-01-02-toy.json"]
    record = records.newest("toy")
    assert record["result"]["cells"] == done
    assert record["result"]["summary"] == 4
    assert [(cell["name"], cell["steps"]) for cell in done] == [("a", 10), ("b", 10), ("a", 20), ("b", 20)]
    assert all(cell["commit"] and cell["seconds"] >= 0 for cell in done)
    assert any("2026-01-02-toy.json" in line for line in lines)
    assert run()[1] == ["4 of 4 cells were there"]


def test_what_a_broken_cell_had_before_it_is_kept() -> None:
    def measure(cell: grid.Cell) -> grid.Result:
        if cell == CELLS[2]:
            raise RuntimeError("out of memory")
        return {}

    with pytest.raises(RuntimeError):
        run(measure=measure)
    assert len(records.newest("toy")["result"]["cells"]) == 2


def test_no_cell_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(grid.time, "monotonic", lambda: clock[0])

    def measure(cell: grid.Cell) -> grid.Result:
        clock[0] += 30 if cell["steps"] == 10 else 60
        return {}

    assert len(run("--minutes", "1.9", measure=measure)[0]) == 2
    assert len(run("--minutes", "2", measure=measure)[0]) == 4


def test_another_setting_begins_a_new_record_only_when_asked() -> None:
    run("--cells", "2")
    with pytest.raises(SystemExit, match="another setting.*--fresh"):
        run(setting="other")
    assert len(run("--cells", "1", "--fresh", setting="other")[0]) == 1


def test_every_objective_of_the_grid_can_be_built() -> None:
    manager = create_plugin_manager()
    for name, terms in objectives.TERMS.items():
        for weights in objectives.WEIGHTS:
            strategy = objectives.strategy_of(name, weights)
            strategy.check(manager)
            assert strategy.objective.terms == terms
            reads = [resolve_part(manager, "objective", term).reads_confidence for term in terms]
            assert any(reads) == (strategy.head.options["confidence"] == "linear")
    assert (
        objectives.strategy_of(*objectives.REFERENCE).objective
        == objectives.strategy_of(*objectives.REFERENCE).objectives["paper"]
    )


def test_gains_are_paired_over_the_prompts_and_the_seeds_that_both_have() -> None:
    def cell(objective: str, seed: int, prompts: str) -> grid.Result:
        measured = [{"temperature": temperature, "prompts": prompts} for temperature in (1.0, 0.0)]
        return {"objective": objective, "weights": "decay", "seed": seed, "steps": 5, "measured": measured}

    rows = objectives.summarise(
        [
            cell("paper", 0, "4/2 9/3"),
            cell("paper", 1, "4/2 6/3"),
            cell("lk", 0, "6/2 12/3"),
            cell("lk", 7, "2/2 3/3"),
        ]
    )
    assert [(row["objective"], row["temperature"]) for row in rows] == [
        ("paper", 1.0),
        ("lk", 1.0),
        ("paper", 0.0),
        ("lk", 0.0),
    ]
    paper, lk = rows[:2]
    assert (paper["seeds"], lk["seeds"]) == ([0, 1], [0, 7])
    assert paper["accepted_length"]["mean"] == pytest.approx(23 / 10)
    assert lk["accepted_length"]["mean"] == pytest.approx(23 / 10)
    assert lk["gain"]["mean"] == pytest.approx(18 / 5 - 13 / 5)
    assert lk["gain_by_seed"] == [pytest.approx(1.0)]
    assert paper["gain"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert objectives.show(rows).row_count == 4
