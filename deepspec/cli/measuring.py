"""The flags that say how drafters are measured; ``eval``, ``calibrate`` and ``compare`` share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepspec.config import EvalConfig

TasksFlag = Annotated[
    list[str] | None, typer.Option("--tasks", metavar="NAMES", help="Separated by commas, or repeated.")
]
TaskFileFlag = Annotated[
    list[str] | None,
    typer.Option("--task-file", metavar="NAME=FILE", help="Prompts of your own, JSONL; repeatable."),
]
TemperatureFlag = Annotated[float | None, typer.Option("--temperature", help="0 is greedy.")]
BatchFlag = Annotated[int | None, typer.Option("--batch", metavar="N", help="Requests decoded together.")]
NumPromptsFlag = Annotated[int | None, typer.Option("--num-prompts", metavar="N", help="Per task.")]
MaxTokensFlag = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="New tokens a prompt.")]
SeedFlag = Annotated[int | None, typer.Option("--seed", metavar="N", help="Of the sampling.")]


def given_settings(
    tasks: Iterable[str] | None, task_files: Iterable[str] | None, **flags: float | None
) -> dict[str, Any]:
    """The settings that flags gave, seen to be valid before anything is loaded; raises ConfigError."""
    from deepspec.config import EvalConfig
    from deepspec.evaluate.tasks import split_task_file
    from deepspec.validation import validate

    names = [name.strip() for given in tasks or () for name in given.split(",") if name.strip()]
    found = {"tasks": tuple(names) or None, **flags}
    given = {key: value for key, value in found.items() if value is not None}
    for file in task_files or ():
        split_task_file(file)
    validate(EvalConfig, given, "eval")
    return given


def joined(config: EvalConfig, given: Mapping[str, Any]) -> EvalConfig:
    """A run's own settings under those that flags gave."""
    from deepspec.validation import validate

    return validate(type(config), {**config.model_dump(), **given}, "eval")


def check_file(flag: str, path: str) -> None:
    """Raise ConfigError, before anything is measured, where no file can be."""
    from pathlib import Path

    from deepspec.errors import ConfigError

    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise ConfigError(f"{flag} {path}: give a file in a folder that exists")
