"""Checkpoints: safetensors and JSON, written beside their place and moved there whole; no pickle.

Everything random is a function of (seed, step), so weights, optimiser moments and the step number are all
that a resumed run needs to go on bit for bit.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepspec.choice import OPTIMIZER, WEIGHTS, file_digest
from deepspec.environment import versions
from deepspec.errors import CheckpointError
from deepspec.paths import remove_left, sync
from deepspec.runs import FORMAT, checkpoint_path, checkpoints, write_json

if TYPE_CHECKING:
    from deepspec.strategy import Parts

logger = logging.getLogger(__name__)

_PARTIAL = ".partial-"


def write_checkpoint(
    folder: Path,
    step: int,
    *,
    parts: Parts,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: Path | None = None,
) -> Path:
    """Write the checkpoint of ``step`` unless it is there, then drop all but the newest ones and ``best``.

    Args:
        weights, optimizer: whole, whatever number of processes trains.
        state: joins ``state.json``, beside format, step, strategy and versions.

    Raises:
        OSError, SafetensorError: it cannot be written; those before it are untouched.
    """
    final = checkpoint_path(folder, step)
    if final not in checkpoints(folder):
        _write(final, weights=weights, optimizer=optimizer, state={**_header(step, parts), **state})
    drop_old(folder, keep=keep, best=best)
    return final


def drop_old(folder: Path, *, keep: int, best: Path | None) -> None:
    """Remove all checkpoints but the newest ``keep`` and ``best``."""
    for old in checkpoints(folder)[:-keep]:
        if old != best:
            doomed = old.with_name(f"{_PARTIAL}{old.name}")
            old.rename(doomed)  # so that a half-removed one is never taken for a checkpoint
            shutil.rmtree(doomed)


def set_aside(folder: Path, newest: Path | None) -> None:
    """Put damaged checkpoints past ``newest`` out of the way of those that will be written."""
    found = checkpoints(folder)
    for path in found[0 if newest is None else found.index(newest) + 1 :]:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logger.warning("%s is put aside as %s", path, aside.name)


def read_weights(checkpoint: Path, parts: Parts) -> None:
    """Load a checkpoint's draft weights into ``parts``; raises CheckpointError when they do not fit."""
    misfits = load_weights(checkpoint, parts)
    if misfits:
        raise CheckpointError(f"{checkpoint} does not fit the configuration of its run: {summary(misfits)}")


def load_weights(checkpoint: Path, parts: Parts) -> list[str]:
    """Load a checkpoint's draft weights into ``parts`` unless something does not fit, which is returned."""
    return fit_weights(_load(checkpoint / WEIGHTS), parts)


def fit_weights(tensors: Mapping[str, Tensor], parts: Parts) -> list[str]:
    """Load draft weights by our names into ``parts`` unless something does not fit, which is returned."""
    modules = parts.modules()
    expected = modules.state_dict()
    misfits = [f"{name} is missing" for name in expected if name not in tensors]
    misfits += [f"{name} is unknown" for name in tensors if name not in expected]
    misfits += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if not misfits:
        modules.load_state_dict(dict(tensors))
    return misfits


def summary(misfits: Sequence[str]) -> str:
    """The first misfit, and how many more there are."""
    return misfits[0] + (f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else "")


def read_optimizer(checkpoint: Path) -> dict[str, Tensor]:
    """A checkpoint's optimiser state; raises CheckpointError when it was published without one."""
    path = checkpoint / OPTIMIZER
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} has no optimiser state, so training cannot go on from it")
    return _load(path)


def remove_partial(folder: Path) -> None:
    """Remove what interrupted writes left behind."""
    for path in (folder / "checkpoints").glob(f"{_PARTIAL}*"):
        shutil.rmtree(path)
    for path in folder.glob("*.json*"):
        remove_left(path)


def _header(step: int, parts: Parts) -> dict[str, Any]:
    strategy = parts.strategy.model_dump(mode="json")
    return {"format": FORMAT, "step": step, "strategy": strategy, "versions": versions()}


def _write(
    final: Path, *, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    partial = final.with_name(f"{_PARTIAL}{final.name}")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        _save(weights, partial / WEIGHTS)
        _save(optimizer, partial / OPTIMIZER)
        digests = {name: file_digest(partial / name) for name in (WEIGHTS, OPTIMIZER)}
        write_json(partial / "state.json", {**state, "digests": digests})
        sync(partial)
        partial.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    on_host = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(on_host, path, metadata={"format": "pt"})
    sync(path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tensors
