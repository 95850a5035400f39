"""Run folders: what lies in them, loading a trained drafter with its target, and listing runs.

``config.json`` (the configuration), ``checkpoints/step-000450/{draft,optimizer}.safetensors, state.json``,
``best.json`` (which is the best), ``log.jsonl`` (steps and live evaluations), ``samples.jsonl`` (texts they
decoded), ``starts.jsonl`` (command lines, commit, versions), ``tensorboard/`` and ``eval.json``. A published
drafter is the same folder with one checkpoint and no optimiser.
Nothing here imports torch before :func:`load`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.config import RunConfig
from deepspec.errors import CheckpointError, ConfigError
from deepspec.paths import DEMO, asset, written_whole
from deepspec.records import TrainingCost
from deepspec.validation import validate

if TYPE_CHECKING:
    from deepspec.strategy import Parts
    from deepspec.target import Target

logger = logging.getLogger(__name__)

FORMAT = 1
_STEP_PREFIX = "step-"


@dataclass(frozen=True)
class Run:
    """A loaded run: the draft model at ``step``, the target it was trained for, and what training took."""

    path: Path
    config: RunConfig
    target: Target
    parts: Parts
    step: int
    cost: TrainingCost = field(default_factory=TrainingCost)


@dataclass(frozen=True)
class RunSummary:
    """One line of ``deepspec runs``; ``tau`` is the accepted length of the last evaluation
    by its own settings."""

    name: str
    strategy: str
    target: str
    step: int
    tau: float | None
    path: Path


def load(
    run: str | Path,
    *,
    device: str | None = None,
    target_device: str | None = None,
    trust_remote_code: bool = False,
    target: Target | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Load the best checkpoint of a run folder, or the shipped drafter ``demo``, with its target.

    The newest one counts as the best where nothing was evaluated while training. A calibrator that
    ``deepspec calibrate`` stored takes the place of the run's own.

    A target from the hub is taken at the commit that the drafter was trained for, wherever its branch is now.

    Args:
        run: a run folder, or ``demo``; ``FOLDER@last`` and ``FOLDER@STEP`` choose another checkpoint.
        device: where draft model and target go; the best there is when None.
        target_device: where the target goes when it is not to share ``device``.
        trust_remote_code: whether the target's own Python code may run; a run folder may be somebody
            else's, so what its configuration says of this does not count.
        target: the run's target, when it is loaded already.
        changes: other parts to decode with: calibrator, policy and verifier, and the head's ``confidence``.

    Raises:
        ConfigError: other changes, or parts that do not fit.
        CheckpointError: no run there, a newer format, unreadable weights, or another target than it was
            trained for.
        TargetError: the target cannot be loaded.
    """
    from deepspec.choice import chosen_state, split_run
    from deepspec.redecoding import calibration_of, check_changes, redecoded
    from deepspec.target import load_target
    from deepspec.target.load import resolve_device
    from deepspec.train.assemble import assemble
    from deepspec.train.checkpoint import read_weights

    folder, _ = split_run(run)
    checkpoint, state = chosen_state(run)  # its format first: a newer one may
    config = read_config(folder)  # have settings that this version does not know
    place = resolve_device(device)
    # A target that decodes is whole in each process.
    placed = {"device": target_device, "trust_remote_code": trust_remote_code, "parallel": "none"}
    built = pinned(config, state)
    target = target or load_target(built.target.model_copy(update=placed), device=str(place))
    check_target(state, target, folder)
    parts = assemble(built.strategy, target, device=place, dtype=target.dtype, seed=config.seed)
    read_weights(checkpoint, parts)
    parts = redecoded(parts, **{**calibration_of(state), **check_changes(changes or {})})
    parts.modules().eval()
    cost = TrainingCost.of_state(state)
    return Run(path=folder, config=config, target=target, parts=parts, step=int(state["step"]), cost=cost)


def load_all(
    runs: Sequence[Run | str | Path],
    *,
    device: str | None = None,
    target_device: str | None = None,
    trust_remote_code: bool = False,
) -> list[Run]:
    """Load several runs of one target, which is loaded once; what is loaded already stays as it is.

    Raises ConfigError, before anything is loaded, when there is none, one is given twice, or they were
    trained for different targets; else as :func:`load`.
    """
    _check_together(runs)
    options: dict[str, Any] = {"device": device, "target_device": target_device}
    loaded: list[Run] = []
    for run in runs:
        target = loaded[0].target if loaded else None
        loaded.append(
            run
            if isinstance(run, Run)
            else load(run, trust_remote_code=trust_remote_code, target=target, **options)
        )
    return loaded


def _check_together(runs: Sequence[Run | str | Path]) -> None:
    """Raise ConfigError unless these are runs of one target, each given once."""
    if not runs:
        raise ConfigError(f"no run was given; give run folders, or {DEMO!r}")
    from deepspec.choice import chosen_state

    targets: dict[Path, dict[str, Any]] = {}
    for run in runs:
        if isinstance(run, Run):
            checkpoint, found = checkpoint_path(run.path, run.step), target_record(run.target)
        else:
            checkpoint, state = chosen_state(run)
            found = state["target"]
        place = checkpoint.absolute()
        if place in targets:
            raise ConfigError(f"run {place.parent.parent} is given twice; give each once")
        targets[place] = found
    (first, wanted), *others = targets.items()
    for checkpoint, found in others:
        if found["fingerprint"] != wanted["fingerprint"]:
            sides = ((first.parents[1], wanted), (checkpoint.parents[1], found))
            said = [f"{path} is for {one['name']!r} ({one['fingerprint'][:8]})" for path, one in sides]
            raise ConfigError(f"the runs' targets differ: {' and '.join(said)}; give runs of one target")


def run_folder(run: str | Path) -> Path:
    """Where a run lies: the folder itself, or what ships when it is ``demo``."""
    return asset("demo-drafter") if str(run) == DEMO else Path(run)


def list_runs(root: str | Path) -> list[RunSummary]:
    """The runs directly below ``root``, by name; unreadable ones are logged and left out.

    A folder whose ``config.json`` names no strategy (a model, say) is no run.
    """
    found = []
    for folder in sorted(path for path in Path(root).glob("*") if (path / "config.json").is_file()):
        try:
            if "strategy" not in read_json(folder / "config.json"):
                continue
            config = read_config(folder)
            checkpoint = newest_checkpoint(folder)
            step = int(read_state(checkpoint)["step"]) if checkpoint else 0
            tau = _accepted_length(folder)
        except (CheckpointError, ConfigError) as error:
            logger.warning("%s is left out: %s", folder, error)
            continue
        found.append(RunSummary(folder.name, config.strategy.name, config.target.name, step, tau, folder))
    return found


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder; raises CheckpointError when it holds no run."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no run folder (it has no config.json); `deepspec runs` lists those there are, "
            f"and {DEMO!r} names the shipped drafter"
        )
    return validate(RunConfig, read_json(path), f"{path}")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's ``state.json``; raises CheckpointError for a format this version does not know."""
    path = checkpoint / "state.json"
    state = read_json(path)
    written = state.get("format")
    if not isinstance(written, int) or written < 1:
        raise CheckpointError(f"{path} is not a checkpoint of DeepSpec (it states no format)")
    if written > FORMAT:
        raise CheckpointError(
            f"{path} has format {written}; this version of DeepSpec reads up to {FORMAT}: upgrade it"
        )
    missing = [key for key in ("step", "strategy", "target") if key not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {missing[0]!r}; the checkpoint is damaged")
    return state


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run folder and its state; raises CheckpointError when there is none."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        read_config(folder)  # says so when there is no run at all
        raise CheckpointError(
            f"{folder} has no complete checkpoint; go on with: deepspec train --resume --out {folder}"
        )
    return checkpoint, read_state(checkpoint)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies in a run folder."""
    return folder / "checkpoints" / f"{_STEP_PREFIX}{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = (folder / "checkpoints").glob(f"{_STEP_PREFIX}*")
    numbered = [
        (path.name.removeprefix(_STEP_PREFIX), path) for path in found if (path / "state.json").is_file()
    ]
    return [path for step, path in sorted((int(n), p) for n, p in numbered if n.isdecimal())]


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint of a run folder, or None."""
    return next(reversed(checkpoints(folder)), None)


def target_record(target: Target) -> dict[str, Any]:
    """What a checkpoint remembers of its target."""
    return {
        "name": target.name,
        "revision": target.revision,
        "fingerprint": target.fingerprint,
        "vocab_size": target.info.vocab_size,
        "hidden_size": target.info.hidden_size,
    }


def pinned(config: RunConfig, state: Mapping[str, Any]) -> RunConfig:
    """The configuration with what a checkpoint settled: the drafter's options as saved, the target's commit.

    A folder has no commits and stays.
    """
    strategy = config.strategy.replace(drafter=state["strategy"]["drafter"])
    commit = state["target"].get("revision")
    if commit is None or Path(config.target.name).is_dir():
        return config.model_copy(update={"strategy": strategy})
    target = config.target.model_copy(update={"revision": commit})
    return config.model_copy(update={"strategy": strategy, "target": target})


def check_target(state: Mapping[str, Any], target: Target, folder: Path) -> None:
    """Raise CheckpointError unless ``target`` is the one the checkpoint was trained for."""
    trained, found = state["target"], target_record(target)
    differing = [
        key for key in ("vocab_size", "hidden_size", "fingerprint") if trained.get(key) != found[key]
    ]
    if differing:
        details = ", ".join(f"{key} {found[key]} instead of {trained.get(key)}" for key in differing)
        commit = f" at commit {trained['revision']}" if trained.get("revision") else ""
        raise CheckpointError(
            f"{folder} was trained for target {trained.get('name')!r}{commit}, and {target.name!r} as it is "
            f"now is another model: {details}; use the same target, or train a drafter for this one"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the whole new one."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def store_evaluation(folder: Path, report: Mapping[str, Any]) -> None:
    """Keep what an evaluation by the run's own settings found, for :func:`list_runs`; raises OSError."""
    write_json(folder / "eval.json", report)


def evaluation_of(folder: Path) -> dict[str, Any] | None:
    """What :func:`store_evaluation` kept, None when there is nothing."""
    path = folder / "eval.json"
    return read_json(path) if path.is_file() else None


def _accepted_length(folder: Path) -> float | None:
    mean = (evaluation_of(folder) or {}).get("accepted_length", {}).get("mean")
    return float(mean) if isinstance(mean, int | float) else None
