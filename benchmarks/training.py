"""Strategies trained from scratch on the demo target at one budget: τ with intervals, side by side."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from records import write
from rich.console import Console

import deepspec
from deepspec.cli.results import interval
from deepspec.config import EvalConfig, RunConfig, TrainConfig

SEED = 0
TEMPERATURES = (1.0, 0.0)
BAR = 1.89  # what a trial reached with DSpark at these tokens on a target of perplexity 16.5


def measure(name: str, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train one strategy and evaluate it, sampled and greedy."""
    strategy = deepspec.Strategy.named(name).replace(verifier="token")  # as published numbers are measured
    config = RunConfig(strategy=strategy, train=TrainConfig(num_steps=steps), seed=SEED)
    run = deepspec.train(strategy, config=config, out=folder / name)
    keys = ("strategy", "temperature", "accepted_length", "conditional_acceptance", "num_prompts")
    found = []
    for temperature in TEMPERATURES:
        settings = EvalConfig(temperature=temperature, num_prompts=96, tasks=("stdlib",), seed=SEED)
        report = deepspec.evaluate(run, config=settings).to_json()
        found.append({key: report[key] for key in keys})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", nargs="+", default=["dflash", "dspark"])
    parser.add_argument("--steps", type=int, default=450)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run for name in options.strategies for run in measure(name, options.steps, Path(folder))]
    setting = f"{options.steps} steps of 8 × 256 tokens, two draft layers, G = 7, seed {SEED}, code"
    result = {"setting": setting, "runs": runs}
    lines = write(
        "training", result, seed=SEED, warm_up="none, nothing is timed", repeats="one run a strategy"
    )
    console = Console()
    for run in runs:
        tau = interval(run["accepted_length"])
        console.print(f"{run['strategy']} at temperature {run['temperature']:g}: τ {tau}")
    console.print("\n".join(lines), soft_wrap=True)
    taus = {run["strategy"]: run["accepted_length"] for run in runs if run["temperature"] == 1.0}
    if not {"dspark", "dflash"} <= set(taus):
        return 0
    apart = taus["dspark"]["ci95"][0] > taus["dflash"]["ci95"][1]
    return int(not (apart and taus["dspark"]["mean"] > BAR))


if __name__ == "__main__":
    sys.exit(main())
