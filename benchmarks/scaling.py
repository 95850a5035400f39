"""Training by two processes of one thread against one process of one thread, and one of two.

DSpark for the shipped demo target at its defaults: the same rows a step with each, so the same work. Each
contender is started anew in each repeat, in an order that rotates; a step's speed is what rank 0 logs of it,
the first steps left out. Needs two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import spread, write
from rich.console import Console

import deepspec
from deepspec.config import RunConfig, TrainConfig
from deepspec.types import StepRecord

SEED, WARM_UP = 0, 3


@dataclass(frozen=True)
class Contender:
    processes: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.processes} × {self.threads}"

    def run(self, steps: int, folder: Path) -> list[float]:
        """Tokens per second of each step that counts."""
        out = folder / "speeds.json"
        here = [__file__, "--steps", str(steps), "--measure", str(out)]
        command = [sys.executable, *here]
        if self.processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
            command = [sys.executable, *launch, *here]
        variables = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        subprocess.run(command, check=True, env=variables, capture_output=True)
        return json.loads(out.read_text())


ONE, TWO_THREADS, TWO = Contender(1, 1), Contender(1, 2), Contender(2, 1)
CONTENDERS = (ONE, TWO_THREADS, TWO)


def measure(steps: int, out: Path) -> None:
    """What one process of a contender does; rank 0 writes the speeds."""
    speeds: list[float] = []

    def note(record: StepRecord) -> None:
        speeds.append(record.tokens_per_s)

    train = TrainConfig(num_steps=steps, log_every=1, validate_every=10**6, checkpoint_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(strategy=deepspec.Strategy.named("dspark"), train=train, seed=SEED, device="cpu")
        # Every process is given the main one's folder.
        deepspec.train(config.strategy, config=config, out=Path(folder) / "run", observers=[note])
    if speeds:
        out.write_text(json.dumps(speeds[WARM_UP:]))


def compare(steps: int, repeats: int) -> dict[str, Any]:
    speeds: dict[str, list[list[float]]] = {one.name: [] for one in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            first = number % len(CONTENDERS)
            for one in [*CONTENDERS[first:], *CONTENDERS[:first]]:
                speeds[one.name].append(one.run(steps, Path(folder)))
    medians = {name: [sorted(run)[len(run) // 2] for run in runs] for name, runs in speeds.items()}
    pairs = {
        other: list(zip(medians[TWO.name], medians[other.name], strict=True)) for other in (ONE, TWO_THREADS)
    }
    return {
        "rows": TrainConfig().sequences_per_step,
        "tokens_per_s": {name: spread(values) for name, values in medians.items()},
        "two_over": {other.name: spread([two / one for two, one in pairs[other]]) for other in pairs},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.steps, options.measure)
        return 0
    result = compare(options.steps, options.repeats)
    lines = write(
        "scaling",
        result,
        seed=SEED,
        warm_up=f"{WARM_UP} steps of each start",
        repeats=f"{options.repeats} starts of {options.steps} steps each; a start counts by its median step",
    )
    Console().print(json.dumps(result, indent=1), *lines, sep="\n", soft_wrap=True)
    return int(result["two_over"][ONE.name]["median"] < 1.7)


if __name__ == "__main__":
    sys.exit(main())
