"""Named prompt sources. Two ship with the package and work offline; the others come from the hub.

A plugin adds one by returning a subclass of :class:`EvalTask` from ``deepspec_parts``. Prompts of the hub's
tasks are put as a user's message when the target's tokenizer has a chat template, else as they are.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deepspec.data.chat import encode_chat, encode_prompt
from deepspec.data.examples import Message, parse_messages, text_field
from deepspec.data.rows import read_rows
from deepspec.errors import ConfigError, DataError, TargetError
from deepspec.evaluate import hub
from deepspec.interfaces import Part
from deepspec.paths import asset
from deepspec.plugins import create_plugin_manager, resolve_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deepspec.config import EvalConfig
    from deepspec.target import Target

log = logging.getLogger(__name__)

Prompts = list[tuple[int, ...]]
ItemT = TypeVar("ItemT")
_TASK_FILE_FORMS = '{"prompt": text}, {"messages": [...]} or {"tokens": [...]}, with an optional "source"'


class EvalTask(Part):
    """A named source of prompts, made without arguments."""

    kind = "task"

    @abstractmethod
    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        """At most ``num_prompts`` prompts as the target's tokens, the same ones each time."""


class Stdlib(EvalTask):
    """Code: beginnings of held-out standard-library modules' statements (shipped)."""

    name = "stdlib"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return file_prompts(asset("prompts/stdlib.jsonl"), tokenizer, num_prompts)


class Prose(EvalTask):
    """Natural language: docstrings and comments of the same modules, broken off (shipped)."""

    name = "prose"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return file_prompts(asset("prompts/prose.jsonl"), tokenizer, num_prompts)


class Gsm8k(EvalTask):
    """Grade-school mathematics."""

    name = "gsm8k"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return hub_prompts(hub.GSM8K, self.name, tokenizer, num_prompts)


class Math500(EvalTask):
    """Competition mathematics."""

    name = "math500"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return hub_prompts(hub.MATH500, self.name, tokenizer, num_prompts)


class HumanEval(EvalTask):
    """Python functions to complete."""

    name = "humaneval"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return hub_prompts(hub.HUMANEVAL, self.name, tokenizer, num_prompts)


class Mbpp(EvalTask):
    """Python functions to write from a description."""

    name = "mbpp"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return hub_prompts(hub.MBPP, self.name, tokenizer, num_prompts)


class MtBench(EvalTask):
    """Open questions, the first turn of each."""

    name = "mt-bench"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return hub_prompts(hub.MT_BENCH, self.name, tokenizer, num_prompts)


class Alpaca(EvalTask):
    """Everyday instructions."""

    name = "alpaca"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
        return hub_prompts(hub.ALPACA, self.name, tokenizer, num_prompts)


def collect_prompts(names: Sequence[str], target: Target, config: EvalConfig) -> dict[str, Prompts]:
    """Each task's prompts, those left out that leave no room for ``max_tokens``.

    Raises:
        ConfigError: an unknown task, or one named twice. TargetError: no tokenizer.
        DataError: prompts that cannot be had, read, or fitted into the target's positions.
    """
    if not names:
        raise ConfigError("no task was given; name one, such as stdlib, or NAME=FILE.jsonl")
    if target.tokenizer is None:
        raise TargetError(f"target {target.name!r} has no tokenizer, so prompts cannot be made for it")
    manager = create_plugin_manager()
    found: dict[str, Prompts] = {}
    for given in names:
        if "=" in given:
            name, file = split_task_file(given)
            prompts = file_prompts(file, target.tokenizer, config.num_prompts)
        else:
            name = given
            task: EvalTask = resolve_part(manager, "task", name)()
            prompts = task.prompts(target.tokenizer, config.num_prompts)
        if name in found:
            raise ConfigError(f"task {name!r} is given twice; name each once")
        found[name] = _that_fit(name, prompts, target.info.max_positions - config.max_tokens)
    return found


def file_prompts(file: Path, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> Prompts:
    """Prompts of a JSONL, JSON or Parquet file: raw ``{"prompt"}``, ``{"messages"}`` for the chat template,
    or ``{"tokens"}`` as they are.

    Raises DataError with ``file:line`` for anything else.
    """
    records = list(read_rows(file))
    return [_encode(record, source, tokenizer) for source, record in spread(records, num_prompts)]


def hub_prompts(
    source: hub.HubSource, task: str, tokenizer: PreTrainedTokenizerBase, num_prompts: int
) -> Prompts:
    """Prompts of a data set on the hub; raises DataError naming ``--task-file`` when it cannot be had."""
    texts = spread(hub.load_texts(source, task), num_prompts)
    if not tokenizer.chat_template:
        return [encode_prompt(tokenizer, text) for text in texts]
    return [encode_chat(tokenizer, [Message("user", text)], source=f"task {task}") for text in texts]


def spread(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """``count`` items at even distances, all of them when there are no more."""
    if count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def split_task_file(given: str) -> tuple[str, Path]:
    """NAME=FILE.jsonl in two; raises ConfigError for anything else."""
    name, separator, path = given.partition("=")
    if not (separator and name.strip() and path.strip()):
        raise ConfigError(f"task file {given!r}: write NAME=FILE.jsonl")
    return name.strip(), Path(path.strip()).expanduser()


def _that_fit(name: str, prompts: Prompts, room: int) -> Prompts:
    fitting = [prompt for prompt in prompts if 0 < len(prompt) <= room]
    if len(fitting) < len(prompts):
        log.warning(
            "task %s: %d of %d prompts left out: empty, or no room for max_tokens after them",
            name,
            len(prompts) - len(fitting),
            len(prompts),
        )
    if not fitting:
        raise DataError(
            f"task {name!r}: none of {len(prompts)} prompts fits the target's positions beside the tokens to "
            f"generate ({max(room, 0)} are left for a prompt); lower eval.max_tokens or shorten the prompts"
        )
    return fitting


def _encode(record: dict[str, object], source: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    keys = set(record) - {"source"}
    if keys == {"prompt"}:
        return encode_prompt(tokenizer, text_field(record, "prompt", source))
    if keys == {"messages"}:
        return encode_chat(tokenizer, parse_messages(record["messages"], source), source=source)
    if keys == {"tokens"}:
        return _tokens(record["tokens"], source)
    given = ", ".join(f'"{key}"' for key in sorted(record)) or "none"
    raise DataError(f"{source}: a prompt is {_TASK_FILE_FORMS}; given: {given}")


def _tokens(value: object, source: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise DataError(f'{source}: "tokens" must be a list of the target\'s token ids')
    return tuple(value)
