"""What ``tests/test_distributed.py`` starts under torchrun: small runs after each other, so as to start once.

``python -m tests.distributed_worker FOLDER`` finds ``target``, ``text.jsonl``, ``prompts.jsonl`` and the run
``alone`` in FOLDER. Of each failure it writes which process met it, as ``<name>-<rank>.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from deepspec import cli, distributed
from deepspec.config import EvalConfig, RunConfig
from deepspec.errors import DeepSpecError
from deepspec.evaluate import evaluate
from deepspec.runs import checkpoint_path
from deepspec.train import train
from deepspec.train.trainer import Trainer
from tests.tiny_runs import config

ROWS = 5


def settings(folder: Path, text: str = "text.jsonl", **train_changes: object) -> RunConfig:
    """Exact in float64 but for the order of sums: AdamW, since Muon's products are in bfloat16."""
    changes = {"sequences_per_step": ROWS, "optimizer": "adamw", **train_changes}
    return config(folder / "target", folder / text, target={"dtype": "float64"}, train=changes)


def run(folder: Path, name: str, changed: RunConfig | None = None, *, resume: bool = False) -> None:
    chosen = changed or settings(folder)
    train(chosen.strategy, config=chosen, out=folder / name, resume=resume)


def cut(folder: Path, name: str, copied: str) -> None:
    """A copy of a run as it was after step 3."""
    if distributed.of_environment().is_main:
        shutil.copytree(folder / name, folder / copied)
        shutil.rmtree(checkpoint_path(folder / copied, 6))


def noted(folder: Path, name: str, action: Callable[[], None]) -> None:
    """Run something that must fail, and note how."""
    rank = distributed.of_environment().rank
    try:
        action()
    except DeepSpecError as error:
        (folder / f"{name}-{rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))


def interrupted(folder: Path) -> None:
    """A run in which a signal reaches the last process alone, in step 2."""
    world, step = distributed.of_environment(), Trainer.step

    def signalled(trainer: Trainer, number: int, *, measure: bool) -> object:
        if number == 1 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, number, measure=measure)

    Trainer.step = signalled  # type: ignore[method-assign]
    try:
        run(folder, "stopped")
    finally:
        Trainer.step = step  # type: ignore[method-assign]


def sharded(folder: Path, text: str = "text.jsonl", **changes: object) -> RunConfig:
    made = settings(folder, text, parallel="fsdp", **changes)
    return made.model_copy(update={"target": made.target.model_copy(update={"parallel": "fsdp"})})


def main() -> None:
    folder = Path(sys.argv[1])
    world = distributed.join()
    run(folder, "ddp")
    run(folder, "fsdp", sharded(folder, accumulation=2))
    run(folder, "sparse", sharded(folder, "sparse.jsonl"))
    for source in ("alone", "ddp", "fsdp"):
        cut(folder, source, f"{source}-resumed")
    world.gather(None)
    run(folder, "alone-resumed", resume=True)
    run(folder, "ddp-resumed", resume=True)
    run(folder, "fsdp-resumed", sharded(folder, accumulation=2), resume=True)
    noted(folder, "stopped", lambda: interrupted(folder))
    run(folder, "stopped", resume=True)
    noted(folder, "rates", lambda: run(folder, "rates", settings(folder, learning_rate=0.01 + world.rank)))
    noted(folder, "rows", lambda: run(folder, "rows", settings(folder, sequences_per_step=1)))
    report = evaluate(
        folder / "alone",
        tasks=(),
        task_files=(f"p={folder / 'prompts.jsonl'}",),
        config=EvalConfig(max_tokens=12, batch=2),
    )
    (folder / f"eval-{world.rank}.json").write_text(json.dumps(report.to_json()))
    values = folder / "config.json"
    if world.is_main:
        values.write_text(sharded(folder).model_dump_json())
    world.gather(None)
    cli.main(["features", "--config", str(values), "--folder", str(folder / "features"), "--json"])


if __name__ == "__main__":
    main()
