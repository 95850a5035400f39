"""The grid of strategies: its cells, one trained and measured in pieces, and what is made of cells."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import records
from strategy_summary import show, summarise

from deepspec.config import EvalConfig
from deepspec.evaluate import comparison
from deepspec.runs import newest_checkpoint
from deepspec.train import TrainingInterruptedError
from tests.tiny_runs import save_target, save_text

#: By its path, since the folder of built-in strategies has the script's name.
SCRIPT = importlib.util.spec_from_file_location(
    "strategies_script", records.ROOT / "benchmarks" / "strategies.py"
)
strategies = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(strategies)

HOUR = ["dspark-2", "dflash-2", "eagle3", "mtp-recycled", "dspark-5", "dflash-5"]
#: Rounds of each of the made-up prompts.
ROUNDS = (10, 20, 5, 8)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records, empty."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def cells(*arguments: str) -> list[str]:
    return [strategies.cell_name(cell) for cell in strategies.make_cells(strategies.parse(arguments))]


def test_the_hour_is_six_variants_and_globs_choose_among_them() -> None:
    assert cells() == [f"{variant}-g7-s450-seed0" for variant in HOUR]
    assert cells("--cells", "eagle3*,dflash-2-*", "--seeds", "1,2") == [
        f"{variant}-g7-s450-seed{seed}" for seed in (1, 2) for variant in ("dflash-2", "eagle3")
    ]
    assert cells("--cells", "dspark-5*", "--steps", "9", "--learning-rates", "auto,0.02") == [
        "dspark-5-g7-s9-seed0",
        "dspark-5-g7-s9-seed0-lr0.02",
    ]
    with pytest.raises(SystemExit, match="none of 6 cells"):
        cells("--cells", "eagle4*")


def test_the_full_grid_has_every_variant_at_both_draft_lengths_and_all_are_strategies_that_exist() -> None:
    options = strategies.parse(["--preset", "full"])
    found = strategies.make_cells(options)
    assert len(found) == 2 * len(strategies.VARIANTS) == len({strategies.cell_name(cell) for cell in found})
    for cell in found:
        settings = strategies.make_config(cell, options)
        settings.strategy.check()
        assert settings.strategy.draft_length == cell["draft_length"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for one cell of a tiny target, whose positions hold the shipped prompts byte by byte."""
    folder = tmp_path_factory.mktemp("grid")
    target = save_target(folder / "target", max_position_embeddings=2048)
    data = save_text(folder / "text.jsonl", num_documents=60)
    place = ["--target", str(target), "--data", str(data), "--runs", str(folder / "runs")]
    return [*place, "--cells", "dflash-2-*", "--steps", "2", "--num-prompts", "1"]


class AfterOneStep(strategies.Deadline):
    """Is over once a step was trained."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps = 0

    @property
    def is_over(self) -> bool:
        return self.steps > 0

    def __call__(self, record: object) -> None:
        self.steps += 1
        super().__call__(record)


def test_a_cell_is_trained_in_pieces_measured_and_saved_once(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    for name, value in (("BATCH", 1), ("_NUM_ALONE", 1), ("_NUM_BLOCKS", 1)):
        monkeypatch.setattr(comparison, name, value)
    monkeypatch.setattr(strategies, "EvalConfig", partial(EvalConfig, max_tokens=4))
    options = strategies.parse(tiny)
    [cell] = strategies.make_cells(options)
    folder = options.runs / strategies.cell_name(cell)
    with pytest.raises(TrainingInterruptedError):
        strategies.measure(cell, options=options, deadline=AfterOneStep())
    assert newest_checkpoint(folder).name == "step-000001"
    assert strategies.main([*tiny, "--minutes", "0"]) == 0
    assert "stopped; the same command goes on from here" in capsys.readouterr().out
    assert strategies.main([*tiny, "--list"]) == 0
    assert capsys.readouterr().out.split()[-3:] == ["trained", "to", "step-000001"]
    assert not results.exists()

    assert strategies.main(tiny) == 0
    [path] = results.iterdir()
    record = json.loads(path.read_text())
    [found] = record["result"]["cells"]
    assert cell.items() <= found.items()
    assert [one["temperature"] for one in found["measured"]] == [1.0, 0.0]
    assert found["train_flops"] > found["train_flops_target"] > 0
    assert found["train_tokens"] > 2000
    assert 0 < found["peak_learning_rate"] < 1
    assert len(found["measured"][0]["prompts"].split()) == 2
    assert "At equal tokens: G = 7, temperature 1" in capsys.readouterr().out

    monkeypatch.setattr(strategies, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert strategies.main(tiny) == 0
    assert "1 of 1 cells were there" in capsys.readouterr().out
    assert strategies.main([*tiny, "--list"]) == 0
    assert capsys.readouterr().out.split()[-1] == "measured"


def made(
    variant: str, tau: float, *, steps: int = 450, seed: int = 0, rate: str = "auto", cost: float = 1e12
):
    """A finished cell whose every prompt has that accepted length, the half of it at temperature 0."""
    measured = [
        {
            "temperature": temperature,
            "accepted_length": {"mean": part * tau, "ci95": [part * tau, part * tau]},
            "conditional_acceptance": [0.5, None],
            "counts": {"observed": [40, 0], "accepted": [20, 0]},
            "prompts": " ".join(f"{round(part * tau * rounds * 1000)}/{rounds * 1000}" for rounds in ROUNDS),
            "draft_ms": 1.0,
            "verify_ms": 10.0,
            "speedup": 1.25,
            "speedup_batch16": 0.8,
        }
        for temperature, part in ((1.0, 1), (0.0, 0.5))
    ]
    head = {"variant": variant, "draft_length": 7, "steps": steps, "seed": seed, "learning_rate": rate}
    costs = {"parameters": 10, "train_tokens": 1000, "train_seconds": cost / 1e10, "train_flops": cost}
    return {**head, **costs, "train_flops_target": cost / 2, "measured": measured}


def test_ratios_pool_the_seeds_that_both_have_and_show_each() -> None:
    done = [made("dspark-2", 2.0), made("dspark-2", 3.0, seed=1), made("dspark-2", 9.0, seed=2)]
    done += [made("eagle3", 2.0), made("eagle3", 2.0, seed=1)]
    summary = summarise(done)
    [one] = [one for one in summary["ratios"] if one["temperature"] == 1.0]
    assert (one["a"], one["b"], one["seeds"]) == ("dspark-2", "eagle3", [0, 1])
    assert one["ratio"]["mean"] == pytest.approx(1.25)
    assert one["ratio"]["ci95"] == pytest.approx([1.25, 1.25])
    assert one["ratio_by_seed"] == pytest.approx([1.0, 1.5])
    assert one["difference"]["mean"] == pytest.approx(0.5)
    assert not summary["equal_compute"]
    [row] = [r for r in summary["rows"] if (r["variant"], r["temperature"]) == ("eagle3", 0.0)]
    assert row["accepted_length"]["mean"] == pytest.approx(1.0)
    assert (row["seeds"], row["by_seed"]) == ([0, 1], [1.0, 1.0])
    assert row["conditional_acceptance"] == [0.5, None]


def test_of_several_learning_rates_the_best_stands_for_the_variant() -> None:
    done = [made("dspark-2", 2.0, rate="0.01"), made("dspark-2", 2.4, rate="0.02"), made("dflash-2", 2.0)]
    summary = summarise(done)
    assert summary["ratios"][0]["ratio"]["mean"] == pytest.approx(1.2)
    best = {(row["variant"], row["learning_rate"]) for row in summary["rows"] if row["is_best_rate"]}
    assert best == {("dspark-2", "0.02"), ("dflash-2", "auto")}


def test_at_equal_compute_accepted_lengths_are_read_between_budgets() -> None:
    def at_cost(cost: float) -> float:
        return 1 + 0.1 * math.log(cost / 1e11)

    done = [made("dspark-2", at_cost(c), steps=s, cost=c) for s, c in ((150, 1e12), (450, 3e12))]
    done += [made("eagle3", 2 * at_cost(c), steps=s, cost=c) for s, c in ((150, 2e12), (450, 6e12))]
    done += [made("dflash-2", 2.0, steps=s, cost=c) for s, c in ((150, 4e12), (450, 9e12))]
    done += [made("mtp-recycled", 3.0, cost=1e12)]  # one budget says nothing of others
    found = next(one for one in summarise(done)["equal_compute"] if one["temperature"] == 1.0)
    assert (found["axis"], found["budget"]) == ("train_flops", pytest.approx(3e12))
    means = {name: value["mean"] for name, value in found["accepted_length"].items()}
    assert means == {
        "dspark-2": pytest.approx(at_cost(3e12), abs=1e-3),
        "eagle3": pytest.approx(2 * at_cost(3e12), abs=1e-3),
    }
    assert found["beyond"] == ["dflash-2"]
    [ratio] = found["ratios"]
    assert (ratio["a"], ratio["b"]) == ("dspark-2", "eagle3")
    assert ratio["ratio"]["mean"] == pytest.approx(0.5, abs=1e-3)
    assert [one["axis"] for one in summarise(done)["equal_compute"]].count("train_seconds") == 2


def test_the_record_becomes_a_table_of_the_readme(results: Path) -> None:
    done = [made("dspark-2", 1.5, steps=150, cost=1e12), made("dspark-2", 2.0, cost=3e12)]
    done += [made("dflash-2", 1.25, steps=150, cost=1e12), made("dflash-2", 1.6, cost=3e12)]
    done += [made("dflash-2", 1.5, cost=3e12, rate="0.5")]
    result = {"setting": "shortly", "summary": summarise(done), "cells": done}
    records.write("strategies", result, seed=0, warm_up="none", repeats="one")
    text = records.tables()
    assert "G = 7, 450 steps:" in text
    row = "| dspark-2 | 1 | 2.00 (2.00–2.00) | .50 - | 1.0 + 10.0 | 1.25 | 3.0 | 300 |"
    assert row in text
    assert text.index(row) < text.index("| dflash-2 | 1 | 1.60")
    assert "rate 0.5" not in text
    assert "dspark-2 / dflash-2 1.25 (1.25–1.25)" in text
    assert "At 3.0 TFLOPs of training, between budgets interpolated: dspark-2 2.00" in text
    assert "At 300 seconds of training" in text
    titles = [table.title for table in show(result["summary"])]
    assert titles.count("Pairs at equal tokens: G = 7, temperature 1") == 1
