"""Kills real training processes with SIGKILL at aimed and at random moments, resumes each, compares the end.

    python -m tests.train.kills TARGET TEXT FOLDER [--kills 30] [--seed 0]

A process that has imported everything forks one child for each attempt. Prints JSON: how many were killed
where, how many runs were completed, and what differed from the run that nothing interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch.utils.tensorboard  # noqa: F401 - once, not in each child

from deepspec.data import mapped
from deepspec.engine import Engine
from deepspec.train import checkpoint, logs, train
from deepspec.train.logs import RunLog
from deepspec.train.trainer import Trainer
from tests.tiny_runs import config

TRAIN = {"num_steps": 8, "checkpoint_every": 3, "validate_every": 2, "log_every": 1, "keep_checkpoints": 1}
LIVE = {"validate_prompts": 4, "validate_tokens": 8}
#: Of a record, what depends on the clock.
CLOCK = ("tokens_per_s", "seconds_left")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _die_in(owner: Any, name: str, number: int, before: Callable[..., None] | None = None) -> None:
    """Kill this process in the ``number``-th call of a function, after ``before`` did a part of its work."""
    original, calls = getattr(owner, name), []

    def killing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            if before is not None:
                before(*arguments)
            die()
        return original(*arguments, **options)

    setattr(owner, name, killing)


def _half_a_file(tensors: Any, path: Path) -> None:
    path.write_bytes(b"\x40" * 1000)


def _half_a_line(log: RunLog, name: str, *lines: Any) -> None:
    with (log._folder / name).open("a") as file:
        file.write(json.dumps(lines[0])[:20])


#: Where a process is killed, and about how often a whole run comes by.
MOMENTS: dict[str, tuple[int, Callable[[int], None]]] = {
    "step": (8, lambda n: _die_in(Trainer, "learn", n)),
    "evaluation": (20, lambda n: _die_in(Engine, "step", n)),
    "weights": (10, lambda n: _die_in(checkpoint, "save_file", n, _half_a_file)),
    "state": (5, lambda n: _die_in(checkpoint, "write_json", n)),
    "move": (8, lambda n: _die_in(Path, "rename", n)),
    "removal": (4, lambda n: _die_in(checkpoint.shutil, "rmtree", n)),
    "log": (14, lambda n: _die_in(RunLog, "_append", n, _half_a_line)),
    "best": (4, lambda n: _die_in(RunLog, "replace", n)),
    "cut": (2, lambda n: _die_in(logs, "written_whole", n)),
    "tokens": (1, lambda n: _die_in(mapped._Spools, "copy_to", n)),
}


class Victims:
    """Runs of one configuration, in children that are killed."""

    def __init__(self, target: Path, text: Path, folder: Path, seed: int) -> None:
        self.settings = config(target, text, train={**TRAIN, **LIVE})
        self.folder, self.random = folder, random.Random(seed)

    def attempt(self, out: Path, moment: str | None, seconds: float) -> bool:
        """Train, or go on, in a child; whether it was killed."""
        number = self.random.randint(1, MOMENTS[moment][0]) if moment in MOMENTS else 0
        delay = self.random.uniform(0, seconds)
        child = os.fork()
        if child == 0:
            self._train(out, moment, number)
        if moment == "any":
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"an attempt at {out} failed"
        return os.WIFSIGNALED(status)

    def _train(self, out: Path, moment: str | None, number: int) -> NoReturn:
        code = 1
        try:
            os.environ["DEEPSPEC_HOME"] = str(out.with_name(f"{out.name}-home"))
            if moment in MOMENTS:
                MOMENTS[moment][1](number)
            resume = (out / "config.json").exists()
            train(self.settings.strategy, config=self.settings, out=out, resume=resume)
            code = 0
        finally:
            os._exit(code)


def left(out: Path) -> dict[str, Any]:
    """All of a run folder that does not depend on the clock."""
    found: dict[str, Any] = {"hidden": [str(path) for path in out.rglob(".*")]}
    for path in sorted((out / "checkpoints").glob("*/*.safetensors")):
        found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    for name in ("samples.jsonl", "best.json", "live-prompts.jsonl"):
        found[name] = (out / name).read_text()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    found["log.jsonl"] = [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
    found["tokens"] = sorted(p.name for p in out.with_name(f"{out.name}-home").rglob("*") if p.is_file())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", type=Path, nargs=3)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    target, text, folder = given.paths
    victims = Victims(target, text, folder, given.seed)
    started = time.perf_counter()
    victims.attempt(folder / "whole", None, 0)
    seconds = time.perf_counter() - started
    wanted = left(folder / "whole")
    order = ["any", *MOMENTS]
    killed: Counter[str] = Counter()
    problems: list[str] = []
    num_runs, tries = 1, 0
    while killed.total() < given.kills:
        out = folder / f"run-{num_runs}"
        moment = order[tries % len(order)]
        tries += 1
        if victims.attempt(out, moment, seconds):
            killed[moment] += 1
            if killed.total() < given.kills:
                continue
            victims.attempt(out, None, 0)
        found = left(out)
        problems += [f"{out.name}: {key}" for key in wanted | found if wanted.get(key) != found.get(key)]
        num_runs += 1
    print(json.dumps({"killed": killed, "num_runs": num_runs - 1, "problems": problems}))


if __name__ == "__main__":
    main()
