"""Which checkpoint of a run: its best one unless ``RUN@last``, ``RUN@best`` or ``RUN@STEP`` says otherwise.

The best one is that of the live evaluation with the highest accepted length (``best.json``); a run that had
none has its newest. A damaged checkpoint is never loaded: the newest whole one takes its place, and that is
said.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deepspec.errors import CheckpointError, ConfigError
from deepspec.runs import checkpoint_path, checkpoints, newest_state, read_json, read_state, run_folder

logger = logging.getLogger(__name__)

BEST = "best"
LAST = "last"
BEST_FILE = "best.json"
WEIGHTS = "draft.safetensors"
OPTIMIZER = "optimizer.safetensors"


def split_run(run: str | Path) -> tuple[Path, str | None]:
    """A run's folder, and what was said behind ``@``; raises ConfigError when that chooses nothing."""
    name, mark, choice = str(run).rpartition("@")
    if not mark or Path(run).exists() or not run_folder(name).is_dir():
        return run_folder(run), None
    if choice not in (BEST, LAST) and not choice.isdecimal():
        raise ConfigError(f"{run}: behind @ stands {BEST}, {LAST} or a step, not {choice!r}")
    return run_folder(name), choice


def chosen_state(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that ``run`` chooses, whole, and its state.

    Raises:
        ConfigError: a choice that there is not.
        CheckpointError: no run, or no whole checkpoint.
    """
    folder, choice = split_run(run)
    if choice is not None:
        found = _chosen(folder, choice)
        if (problem := damage(found)) is not None:
            raise CheckpointError(f"{problem}; choose another checkpoint with {folder}@STEP")
        return found, read_state(found)
    if not checkpoints(folder):
        newest_state(folder)  # says what there is instead
    whole = newest_whole(folder, first=best_checkpoint(folder))
    if whole is None:
        raise CheckpointError(f"{folder} has no whole checkpoint: all that are there are damaged")
    return whole, read_state(whole)


def best_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint of a run folder, None when nothing says which, or it is gone."""
    path = folder / BEST_FILE
    if not path.is_file():
        return None
    try:
        found = checkpoint_path(folder, int(read_json(path)["step"]))
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is damaged (%s), so the newest checkpoint counts as the best", path, error)
        return None
    return found if found in checkpoints(folder) else None


def newest_whole(folder: Path, *, first: Path | None = None) -> Path | None:
    """The newest checkpoint that is not damaged, ``first`` before all; what is passed over is logged."""
    candidates = [path for path in reversed(checkpoints(folder)) if path != first]
    problem: str | None = None
    for path in [first, *candidates] if first is not None else candidates:
        if problem is not None:
            logger.warning("%s; the previous checkpoint, %s, is used instead", problem, path.name)
        problem = damage(path)
        if problem is None:
            return path
    if problem is not None:
        logger.warning("%s, and there is no other checkpoint", problem)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, None when nothing is.

    Older checkpoints have no digests: of theirs only what is cut off is seen.
    """
    try:
        state = read_json(checkpoint / "state.json")
    except CheckpointError as error:
        return f"{checkpoint} is damaged ({error})"
    digests = state.get("digests", {})
    for name in digests or (WEIGHTS,):
        path = checkpoint / name
        try:
            if not digests:
                with safe_open(path, framework="numpy") as file:
                    file.keys()
            elif name == OPTIMIZER and not path.is_file():
                continue  # published without it
            elif file_digest(path) != digests[name]:
                return f"{path} is damaged (its content is not what was written)"
        except (OSError, SafetensorError) as error:
            return f"{path} is damaged ({error})"
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chosen(folder: Path, choice: str) -> Path:
    found = checkpoints(folder)
    if not found:
        newest_state(folder)  # says what there is instead
    if choice == LAST:
        return found[-1]
    if choice == BEST:
        best = best_checkpoint(folder)
        if best is None:
            raise ConfigError(
                f"{folder} has no best checkpoint, as nothing was evaluated; give {folder}@{LAST}"
            )
        return best
    path = checkpoint_path(folder, int(choice))
    if path not in found:
        steps = ", ".join(str(int(each.name.rpartition("-")[2])) for each in found)
        raise ConfigError(f"{folder} has no checkpoint of step {choice}; it has those of steps {steps}")
    return path
