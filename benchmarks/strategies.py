"""Strategies, their depths and heads, trained and measured side by side, cell by cell.

A cell is a variant of a strategy, a draft length, a number of optimiser steps, a seed and a learning rate.
Its drafter is trained into a run folder, which an interrupted run goes on with, then measured as ``deepspec
compare`` measures; the record is written after every cell. ``--report`` prints what the newest record says.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import records
from grid import Cell, Result, run_grid
from rich.console import Console
from strategy_summary import TEMPERATURES, show, summarise

import deepspec
from deepspec import Strategy
from deepspec.config import DataConfig, EvalConfig, RunConfig, TargetConfig, TrainConfig
from deepspec.paths import DEMO, cache_root
from deepspec.runs import Run, newest_checkpoint
from deepspec.train import TrainingInterruptedError
from deepspec.train.optimizer import peak_learning_rate
from deepspec.types import StepRecord

ROWS, LENGTH = 8, 256
#: DSpark as published, whatever its default is by now.
PAPER = {"objective": "paper"}
#: A variant's strategy, and what is changed of it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle3": ("eagle3", {}),
    "eagle3-every": ("eagle3", {}),
    "dflash-2": ("dflash", {"drafter": {"num_layers": 2}}),
    "dflash-5": ("dflash", {"drafter": {"num_layers": 5}}),
    "dspark-2": ("dspark", {**PAPER, "drafter": {"num_layers": 2}}),
    "dspark-5": ("dspark", {**PAPER, "drafter": {"num_layers": 5}}),
    "mtp-recycled": ("mtp", {"drafter": {"modules": 1}}),
    "mtp-distinct": ("mtp", {"drafter": {"modules": "each"}}),
    "draft_model": ("draft_model", {}),
    "dspark-2-none": (
        "dspark",
        {**PAPER, "drafter": {"num_layers": 2}, "head": {"type": "none", "confidence": "linear"}},
    ),
    "dspark-2-gated": ("dspark", {**PAPER, "drafter": {"num_layers": 2}, "head": "gated"}),
    "dspark-2-rnn": ("dspark", {**PAPER, "drafter": {"num_layers": 2}, "head": "rnn"}),
}
#: Anchors per row where they are not training's default: Eagle 3's paper unrolls at every position.
ANCHORS = {"eagle3-every": LENGTH}
#: What each preset trains: variants and draft lengths.
PRESETS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "hour": (("dspark-2", "dflash-2", "eagle3", "mtp-recycled", "dspark-5", "dflash-5"), (7,)),
    "full": (tuple(VARIANTS), (7, 15)),
}
TASKS = ("stdlib", "prose")


class _OutOfTimeError(Exception):
    """``--minutes`` are over."""


class Deadline:
    """When a run of this benchmark ends; as an observer of training it stops that after the step."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def check(self) -> None:
        if self.is_over:
            raise _OutOfTimeError

    def __call__(self, record: StepRecord) -> None:
        if self.is_over and record.step < record.num_steps:
            signal.raise_signal(signal.SIGINT)  # training writes a checkpoint and ends, as for a user


def cell_name(cell: Cell) -> str:
    """What ``--cells`` is matched with; also the run folder's name."""
    name = f"{cell['variant']}-g{cell['draft_length']}-s{cell['steps']}-seed{cell['seed']}"
    return name if cell["learning_rate"] == "auto" else f"{name}-lr{cell['learning_rate']}"


def make_cells(options: argparse.Namespace) -> list[Cell]:
    """The preset's cells that the globs of ``--cells`` choose, cheapest budgets first."""
    variants, lengths = PRESETS[options.preset]
    product = itertools.product(
        options.seeds, options.steps, options.draft_lengths or lengths, options.learning_rates, variants
    )
    cells = [
        {"variant": variant, "draft_length": length, "steps": steps, "seed": seed, "learning_rate": rate}
        for seed, steps, length, rate, variant in product
    ]
    globs = options.cells or ["*"]
    chosen = [cell for cell in cells if any(fnmatch(cell_name(cell), glob) for glob in globs)]
    if not chosen:
        raise SystemExit(f"--cells {','.join(globs)}: none of {len(cells)} cells; --list shows them")
    return chosen


def make_config(cell: Cell, options: argparse.Namespace) -> RunConfig:
    """A cell's whole training."""
    variant, rate = str(cell["variant"]), cell["learning_rate"]
    name, changes = VARIANTS[variant]
    anchors = {"anchors_per_sequence": ANCHORS[variant]} if variant in ANCHORS else {}
    return RunConfig(
        strategy=Strategy.named(name).replace(
            draft_length=cell["draft_length"],
            verifier="token",  # as published numbers are measured
            **changes,
        ),
        target=TargetConfig(name=options.target),
        data=DataConfig(paths=options.data, sequence_length=LENGTH),
        train=TrainConfig(
            num_steps=int(cell["steps"]),
            sequences_per_step=ROWS,
            learning_rate=None if rate == "auto" else float(rate),
            validate_every=int(cell["steps"]),
            **anchors,
        ),
        seed=int(cell["seed"]),
    )


def measure(cell: Cell, *, options: argparse.Namespace, deadline: Deadline) -> Result:
    """Train a cell as far as it is not, and measure it, sampled and greedy."""
    deadline.check()
    config = make_config(cell, options)
    folder = options.runs / cell_name(cell)
    run = deepspec.train(
        config.strategy,
        config=config,
        out=folder,
        resume=(folder / "config.json").exists(),
        observers=[deadline],
    )
    deadline.check()
    found = [measured(run, temperature, options.num_prompts) for temperature in TEMPERATURES]
    costs = ("parameters", "train_tokens", "train_seconds", "train_flops", "train_flops_target")
    return {
        **{key: found[0][key] for key in costs},
        "peak_learning_rate": peak_learning_rate(config.train, run.parts.drafter.hidden_size),
        "target_fingerprint": run.target.fingerprint,
        "measured": [{key: one[key] for key in one if key not in costs} for one in found],
    }


def measured(run: Run, temperature: float, num_prompts: int) -> Result:
    """What ``deepspec compare`` says of the run alone."""
    config = EvalConfig(temperature=temperature, num_prompts=num_prompts, tasks=TASKS)
    found = deepspec.compare([run], config=config).to_json()
    left_out = ("name", "strategy", "draft_length", "step", "tasks")
    kept = {key: value for key, value in found["runs"][0].items() if key not in left_out}
    return {"temperature": temperature, "target_ms": found["target_ms"], **kept}


def kind_of_record() -> str:
    """Records of a GPU lie beside those of a CPU."""
    device = records.environment()["device_type"]
    return "strategies" if device == "cpu" else f"strategies-{device}"


def setting(options: argparse.Namespace) -> str:
    """What all cells of a record share."""
    target = "the demo target" if options.target == DEMO else f"target {Path(options.target).name}"
    return f"{ROWS} × {LENGTH} tokens a step, {target}, {options.num_prompts} prompts of each shipped task"


def list_cells(cells: Sequence[Cell], options: argparse.Namespace) -> None:
    """Each cell, and how far it is."""
    record = None if options.fresh else records.newest(kind_of_record())
    done = [] if record is None else record["result"]["cells"]
    for cell in cells:
        checkpoint = newest_checkpoint(options.runs / cell_name(cell))
        state = "-" if checkpoint is None else f"trained to {checkpoint.name}"
        if any(cell.items() <= one.items() for one in done):
            state = "measured"
        print(f"{cell_name(cell):<36} {state}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(one.strip()) for one in text.split(",") if one.strip()]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="hour")
    parser.add_argument("--cells", type=listed(str), metavar="GLOB,...", help="only these; --list names them")
    parser.add_argument("--steps", type=listed(int), default=[450], metavar="N,...")
    parser.add_argument("--seeds", type=listed(int), default=[0], metavar="N,...")
    parser.add_argument("--draft-lengths", type=listed(int), metavar="G,...", help="instead of the preset's")
    parser.add_argument("--learning-rates", type=listed(str), default=["auto"], metavar="RATE,...")
    parser.add_argument("--minutes", type=float, help="stop then; the next run goes on from there")
    parser.add_argument("--num-prompts", type=int, default=64, metavar="N", help="of each task")
    parser.add_argument("--target", default=DEMO, metavar="NAME")
    parser.add_argument("--data", type=listed(str), default=(), metavar="PATH,...")
    parser.add_argument("--runs", type=Path, default=cache_root() / "benchmarks" / "strategies")
    parser.add_argument(
        "--fresh", action="store_true", help="begin a new record, in the place of one of today"
    )
    parser.add_argument("--list", action="store_true", help="name the cells, and end")
    parser.add_argument("--report", action="store_true", help="print the newest record's tables, and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    cells = make_cells(options)
    if options.list:
        list_cells(cells, options)
        return 0
    if not options.report:
        try:
            _, lines = run_grid(
                kind_of_record(),
                setting(options),
                cells,
                partial(measure, options=options, deadline=Deadline(options.minutes)),
                summarise,
                options=argparse.Namespace(cells=None, minutes=None, fresh=options.fresh),
                cost=lambda cell: int(cell["steps"]),
                protocol={
                    "seed": 0,
                    "warm_up": "one short request a contender",
                    "repeats": "16 prompts alone and 4 blocks of 16, by turns with plain decoding",
                },
            )
            console.print("\n".join(lines), soft_wrap=True)
        except (_OutOfTimeError, TrainingInterruptedError) as stopped:
            console.print(f"stopped; the same command goes on from here. {stopped}", soft_wrap=True)
    record = records.newest(kind_of_record())
    if record is not None:
        for table in show(record["result"]["summary"]):
            console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
