"""A run's folder: which one, whether it may be used, and what a resumed run may have different in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import CheckpointError
from deepspec.paths import remove_left, runs_root
from deepspec.runs import read_config

if TYPE_CHECKING:
    from deepspec.config import RunConfig

#: What a resumed run may have different: where it runs, finds its features and logs to, what is trusted, how
#: it is measured afterwards. Live evaluations sample by the rest of ``eval``.
_FREE_KEYS = (
    "out",
    "device",
    "target.device",
    "target.parallel",
    "target.trust_remote_code",
    "features.folder",
    "train.parallel",
    "train.tracker",
    "eval.tasks",
    "eval.num_prompts",
    "eval.max_tokens",
    "eval.batch",
)

#: What each process of a run may have different.
_OWN_KEYS = ("out", "device", "target.device", "features.folder")  # the main process's folder is everyone's


def open_folder(config: RunConfig, *, resume: bool) -> Path:
    """The run folder, not made yet; raises CheckpointError when it cannot be used."""
    if resume:
        if config.out is None:
            raise CheckpointError("resuming needs the run's folder; give --out FOLDER")
        folder = Path(config.out)
        keys = differing_keys(read_config(folder), config)
        if keys:
            raise CheckpointError(
                f"{folder} was started with another configuration; these keys differ: {', '.join(keys)}; "
                f"give the same values, or only `deepspec train --resume --out {folder}`"
            )
        return folder
    if config.out is None:
        return _new_folder(config.strategy.name)
    folder = Path(config.out)
    if (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} already holds a run; go on with it (deepspec train --resume --out {folder}), or "
            "choose another --out"
        )
    if folder.is_dir():
        remove_left(folder / "config.json")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; choose another --out")
    return folder


def differing_keys(saved: RunConfig, given: RunConfig) -> list[str]:
    """Dotted keys in which a resumed run would differ and must not."""
    old, new = (dict(_leaves(config.model_dump(mode="json"))) for config in (saved, given))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [key for key in keys if key not in _FREE_KEYS]


def values_to_share(config: RunConfig) -> dict[str, Any]:
    """What the processes of a run must all have alike, by dotted key: all but where each finds its things."""
    values = dict(_leaves(config.model_dump(mode="json")))
    return {key: value for key, value in values.items() if key not in _OWN_KEYS}


def _new_folder(strategy: str) -> Path:
    base = runs_root() / f"{strategy}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found
