"""What a run writes about itself as it goes: ``log.jsonl``, ``samples.jsonl``, ``starts.jsonl``, events of
TensorBoard under ``tensorboard/``, and a tracker where one is asked for.

A run goes on without them, too; what it did after its last checkpoint is cut off then, so that nothing is
there twice.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.environment import commit, device_name, versions
from deepspec.errors import ConfigError
from deepspec.paths import sync, written_whole
from deepspec.resources import writing
from deepspec.runs import write_json

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
        is_silent: whether another process writes, and this one nothing.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        first_step: int,
        advice: Callable[[], str],
        is_silent: bool = False,
    ) -> None:
        self._folder, self._advice, self._is_silent = folder, advice, is_silent
        self._tracker = None if is_silent else _tracker(config.train.tracker, folder, config)
        self._events = None if is_silent else _events(folder, first_step)

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

    def samples(self, step: int, found: Sequence[Mapping[str, Any]]) -> None:
        """What a live evaluation decoded, a line of ``samples.jsonl`` each, and text in TensorBoard."""
        if not found:
            return
        self._append("samples.jsonl", *({"step": step, **one} for one in found))
        if self._events is not None:
            self._events.add_text("samples", "\n\n".join(map(_shown, found)), step)

    def replace(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file of the run anew."""
        path = self._folder / name
        if self._is_silent:
            return
        with writing(path, self._advice):
            write_json(path, values)

    def sync(self) -> None:
        """Have all lines so far on disk: a checkpoint that follows may be what a run goes on from."""
        for name in ("log.jsonl", "samples.jsonl"):
            if (self._folder / name).is_file():
                sync(self._folder / name)
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Write out what is held back."""
        if self._events is not None:
            self._events.close()
        if self._tracker is not None:
            self._tracker.finish()

    def _append(self, name: str, *lines: Mapping[str, Any]) -> None:
        path = self._folder / name
        if self._is_silent:
            return
        with writing(path, self._advice), path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that are whole; damaged ones, and a file that is not there, are left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
        else:
            logger.warning("%s: a damaged line is dropped", path)
    return found


def cut_logs(folder: Path, step: int) -> int:
    """Drop what was logged after ``step``, and samples of no logged evaluation; the last step before that."""
    path = folder / "log.jsonl"
    lines = read_lines(path)
    kept = [line for line in lines if line["step"] <= step]
    _rewrite(path, kept)
    evaluated = {line["step"] for line in kept if line.get("kind") == "validation"}
    samples = folder / "samples.jsonl"
    _rewrite(samples, [line for line in read_lines(samples) if line["step"] in evaluated])
    return max((line["step"] for line in lines), default=0)


def _rewrite(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    if path.is_file():
        with writing(path, lambda: "make room and try again"), written_whole(path) as partial:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            partial.write_text(text, encoding="utf-8")


def _shown(sample: Mapping[str, Any]) -> str:
    """A sample as TensorBoard's Markdown, indented so that it stays as it is."""
    tau = sample["accepted_length"]
    text = f"{sample['prompt']}«{sample['text']}»".replace("\n", "\n    ")
    return f"accepted length {'-' if tau is None else f'{tau:.2f}'}\n\n    {text}"


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
