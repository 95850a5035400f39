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
from deepspec.cli.report import interval
from deepspec.config import EvalConfig, RunConfig, TrainConfig

SEED = 0
BAR = 1.89  # what a trial reached with DSpark at these tokens on a target of perplexity 16.5


def measure(name: str, steps: int, folder: Path, temperature: float) -> dict[str, Any]:
    """Train one strategy and evaluate it."""
    config = RunConfig(strategy=deepspec.Strategy.named(name), train=TrainConfig(num_steps=steps), seed=SEED)
    run = deepspec.train(name, config=config, out=folder / name)
    settings = EvalConfig(temperature=temperature, num_prompts=96, tasks=("stdlib",), seed=SEED)
    report = deepspec.evaluate(run, config=settings).to_json()
    keys = ("strategy", "accepted_length", "conditional_acceptance", "num_prompts", "temperature")
    return {key: report[key] for key in keys}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", nargs="+", default=["dflash", "dspark"])
    parser.add_argument("--steps", type=int, default=450)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(name, options.steps, Path(folder), 1.0) for name in options.strategies]
    setting = f"{options.steps} steps of 8 × 256 tokens, two draft layers, G = 7, temperature 1, seed {SEED}"
    result = {"setting": setting, "runs": runs}
    lines = write(
        "training", result, seed=SEED, warm_up="none, nothing is timed", repeats="one run a strategy"
    )
    console = Console()
    for run in runs:
        console.print(f"{run['strategy']}: τ {interval(run['accepted_length'])}")
    console.print("\n".join(lines), soft_wrap=True)
    taus = {run["strategy"]: run["accepted_length"] for run in runs}
    if not {"dspark", "dflash"} <= set(taus):
        return 0
    apart = taus["dspark"]["ci95"][0] > taus["dflash"]["ci95"][1]
    return int(not (apart and taus["dspark"]["mean"] > BAR))


if __name__ == "__main__":
    sys.exit(main())
