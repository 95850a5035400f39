"""Which objective makes the best drafter at an equal budget? DSpark on the demo target, cell by cell.

A cell is an objective's terms, its position weights, a seed and a number of optimiser steps; cells of one
seed share initial weights, text and anchors. Every cell is compared with the published objective over the
same prompts and seeds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grid import Cell, Result, add_options, run_grid
from rich.console import Console
from rich.table import Table

import deepspec
from deepspec import Strategy
from deepspec.config import EvalConfig, RunConfig, TrainConfig
from deepspec.evaluate.acceptance import (
    Interval,
    PromptLength,
    bootstrap_ratio,
    compare_lengths,
    measure_acceptance,
    prompt_lengths,
)
from deepspec.evaluate.decoding import decode_rounds
from deepspec.evaluate.tasks import collect_prompts
from deepspec.runs import Run

TERMS = {
    "paper": {"ce": 0.1, "l1": 0.9, "confidence": 1.0},
    "l1": {"l1": 1.0, "confidence": 1.0},
    "ce": {"ce": 1.0},
    "soft_ce": {"soft_ce": 1.0},
    "soft_ce+l1": {"soft_ce": 0.1, "l1": 0.9, "confidence": 1.0},
    "lk": {"lk": 1.0, "confidence": 1.0},
    "lk+ce": {"lk": 0.9, "ce": 0.1, "confidence": 1.0},
    "lk_hybrid": {"lk_hybrid": 1.0, "confidence": 1.0},
}
WEIGHTS: dict[str, dict[str, Any]] = {
    "decay": {"position_decay": 4.0},
    "none": {"position_decay": None},
    "survival": {"position_weights": "survival"},
}
REFERENCE = ("paper", "decay")
TEMPERATURES = (1.0, 0.0)
TASKS = ("stdlib", "prose")
PROMPTS_PER_TASK = 64
SETTING = "steps of 8 × 256 tokens, two draft layers, Markov head, G = 7, 64 prompts of each shipped task"
#: What a cell's decoding costs in optimiser steps, roughly.
STEPS_WORTH_OF_DECODING = 100


def strategy_of(objective: str, weights: str) -> Strategy:
    """DSpark with one of the objectives; a head of which no term trains the confidence gives none."""
    terms = TERMS[objective]
    head = {"confidence": "linear" if "confidence" in terms else "none"}
    loss = {"terms": terms, **WEIGHTS[weights]}
    return Strategy.named("dspark").replace(objective=loss, head=head, verifier="token")


def measure(cell: Cell) -> Result:
    """Train one cell and decode the shipped tasks, sampled and greedy."""
    strategy = strategy_of(str(cell["objective"]), str(cell["weights"]))
    steps, seed = int(cell["steps"]), int(cell["seed"])
    plan = TrainConfig(num_steps=steps, checkpoint_every=steps, validate_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(strategy=strategy, train=plan, seed=seed)
        run = deepspec.train(strategy, config=config, out=Path(folder) / "run")
        return {"measured": [decoded(run, temperature) for temperature in TEMPERATURES]}


def decoded(run: Run, temperature: float) -> Result:
    """Acceptance at one temperature; ``prompts`` holds tokens/rounds of each prompt."""
    config = EvalConfig(temperature=temperature, num_prompts=PROMPTS_PER_TASK, tasks=TASKS)
    prompts = [one for found in collect_prompts(TASKS, run.target, config).values() for one in found]
    rounds = decode_rounds(run.target, run.parts, prompts, config)
    acceptance = measure_acceptance(rounds, draft_length=run.parts.strategy.draft_length)
    return {
        "temperature": temperature,
        "accepted_length": as_json(acceptance.accepted_length),
        "conditional_acceptance": [
            None if rate is None else round(rate, 4) for rate in acceptance.rates.conditional
        ],
        "prompts": " ".join(f"{length.gained}/{length.rounds}" for length in prompt_lengths(rounds)),
    }


def summarise(cells: Sequence[Result]) -> list[Result]:
    """A row for each budget, temperature and objective: τ over its seeds, and what it gains on the reference.

    ``gain`` is paired over the same prompts and the seeds that both have; ``gain_by_seed`` shows how far
    those agree.
    """
    rows = []
    for steps, temperature in itertools.product(sorted({cell["steps"] for cell in cells}), TEMPERATURES):
        of_budget = [cell for cell in cells if cell["steps"] == steps]
        reference = lengths_by_seed(of_budget, REFERENCE, temperature)
        for name in dict.fromkeys((cell["objective"], cell["weights"]) for cell in of_budget):
            own = lengths_by_seed(of_budget, name, temperature)
            row = {"objective": name[0], "weights": name[1], "steps": steps, "temperature": temperature}
            row |= {"seeds": sorted(own), "accepted_length": accepted_length(pooled(own.values()))}
            if shared := sorted(own.keys() & reference.keys()):
                sides = [pooled(side[seed] for seed in shared) for side in (own, reference)]
                row["gain"] = gain(*sides)
                row["gain_by_seed"] = [gain(own[seed], reference[seed])["mean"] for seed in shared]
            rows.append(row)
    return rows


def lengths_by_seed(
    cells: Sequence[Result], name: tuple[str, str], temperature: float
) -> dict[int, list[PromptLength]]:
    """What each prompt came to, by the seed of the training."""
    found = {}
    for cell in cells:
        if (cell["objective"], cell["weights"]) == name:
            [one] = [one for one in cell["measured"] if one["temperature"] == temperature]
            pairs = [pair.split("/") for pair in one["prompts"].split()]
            found[cell["seed"]] = [PromptLength(int(gained), int(rounds)) for gained, rounds in pairs]
    return found


def pooled(sides: Iterable[Sequence[PromptLength]]) -> list[PromptLength]:
    """Each prompt's sums over several drafters."""
    return [
        PromptLength(sum(one.gained for one in prompt), sum(one.rounds for one in prompt))
        for prompt in zip(*sides, strict=True)
    ]


def accepted_length(lengths: Sequence[PromptLength]) -> Result:
    gained, rounds = np.array(lengths, dtype=np.float64).T
    return as_json(bootstrap_ratio(gained, rounds, seed=0))


def gain(one: Sequence[PromptLength], other: Sequence[PromptLength]) -> Result:
    paired = compare_lengths(one, other)
    return as_json(None if paired is None else paired.difference)


def as_json(found: Interval | None) -> Result:
    if found is None:
        return {"mean": None, "ci95": None}
    return {"mean": round(found.mean, 4), "ci95": [round(found.low, 4), round(found.high, 4)]}


def words(found: Result | None) -> str:
    if found is None or found["mean"] is None:
        return "-"
    low, high = found["ci95"]
    return f"{found['mean']:.3f} ({low:.3f}–{high:.3f})"


def show(rows: Sequence[Result]) -> Table:
    table = Table("steps", "T", "objective", "weights", "τ (95 %)", "gain (95 %)", "gain by seed")
    for row in rows:
        by_seed = " ".join(f"{mean:+.3f}" for mean in row.get("gain_by_seed", ()))
        head = (str(row["steps"]), f"{row['temperature']:g}", row["objective"], row["weights"])
        table.add_row(*head, words(row["accepted_length"]), words(row.get("gain")), by_seed)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objectives", nargs="+", choices=TERMS, default=list(TERMS), metavar="NAME")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), metavar="NAME")
    parser.add_argument("--steps", nargs="+", type=int, default=[150, 450])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    add_options(parser)
    options = parser.parse_args()
    cells = [
        {"objective": objective, "weights": weights, "seed": seed, "steps": steps}
        for seed, steps, weights, objective in itertools.product(
            options.seeds, options.steps, options.weights, options.objectives
        )
    ]
    done, lines = run_grid(
        "objectives",
        SETTING,
        cells,
        measure,
        summarise,
        options=options,
        cost=lambda cell: int(cell["steps"]) + STEPS_WORTH_OF_DECODING,
        protocol={"seed": 0, "warm_up": "none, nothing is timed", "repeats": "one run a cell"},
    )
    console = Console()
    console.print(show(summarise(done)))
    console.print("\n".join(lines), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
