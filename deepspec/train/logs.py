"""What a run writes about itself as it goes: ``log.jsonl``, ``starts.jsonl``, TensorBoard's events under
``tensorboard/``, and a tracker where one is asked for. Nothing of it is needed to go on with the run.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.environment import commit, device_name, versions
from deepspec.errors import ConfigError
from deepspec.resources import writing

if TYPE_CHECKING:
    import torch

    from deepspec.config import RunConfig

logger = logging.getLogger(__name__)


class RunLog:
    """Takes in what a run logs, and writes it wherever it goes.

    Args:
        folder: of the run.
        first_step: steps that were done before; what TensorBoard holds past it is dropped.
        advice: what to do when the disk is full.
    """

    def __init__(
        self, folder: Path, config: RunConfig, *, first_step: int, advice: Callable[[], str]
    ) -> None:
        self._folder, self._advice = folder, advice
        self._tracker = _tracker(config.train.tracker, folder, config)
        self._events = _events(folder, first_step)

    def started(self, first_step: int, device: torch.device, *, num_processes: int) -> None:
        """Note how this process was started; a run that is resumed has several."""
        line = {
            "time": datetime.now(tz=UTC).isoformat(timespec="seconds"),
            "first_step": first_step,
            "command": sys.argv,
            "commit": commit(),
            "device": device_name(device),
            "num_processes": num_processes,
            "versions": versions(),
        }
        self._append("starts.jsonl", line)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """A line of ``log.jsonl``, and each of its numbers by a name as ``step/terms/ce``.

        Raises ResourceError when the line cannot be written.
        """
        self._append("log.jsonl", {"kind": kind, **values})
        numbers = dict(_numbers(values, f"{kind}/"))
        step = int(values["step"])
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(numbers, step=step)

    def close(self) -> None:
        """Write out what is held back."""
        if self._events is not None:
            self._events.close()
        if self._tracker is not None:
            self._tracker.finish()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        path = self._folder / name
        with writing(path, self._advice), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("step", "num_steps"):
            yield f"{prefix}{name}", float(value)


def _events(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer; None, and a line that says so, where it is not installed or cannot write."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
    except (ImportError, OSError) as error:
        logger.warning("no TensorBoard events are written: %s", error)
        return None


def check_tracker(name: str | None) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    if name is not None and find_spec(name) is None:
        raise ConfigError(
            f"train.tracker is {name!r}, which is not installed; run `pip install {name}`, or leave it out"
        )


def _tracker(name: str | None, folder: Path, config: RunConfig) -> Any:
    """wandb or trackio, whose calls are alike, begun."""
    if name is None:
        return None
    module = importlib.import_module(name)
    module.init(project="deepspec", name=folder.name, config=config.model_dump(mode="json"))
    return module
