"""The usual benchmark prompts, read through ``datasets``: which data set, which split, which field.

Only prompts are taken; nothing here grades answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deepspec.data.sources import quiet_retries
from deepspec.errors import DataError

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class HubSource:
    """A data set, and how to make a prompt of a row."""

    dataset: str
    config: str | None
    split: str
    prompt: Callable[[Row], str]


def _alpaca(row: Row) -> str:
    return f"{row['instruction']}\n\n{row['input']}" if row["input"] else str(row["instruction"])


def _humaneval(row: Row) -> str:
    return f"Complete this Python function:\n\n```python\n{row['prompt']}```"


GSM8K = HubSource("openai/gsm8k", "main", "test", lambda row: row["question"])
MATH500 = HubSource("HuggingFaceH4/MATH-500", None, "test", lambda row: row["problem"])
HUMANEVAL = HubSource("openai/openai_humaneval", None, "test", _humaneval)
MBPP = HubSource("google-research-datasets/mbpp", "sanitized", "test", lambda row: row["prompt"])
MT_BENCH = HubSource("HuggingFaceH4/mt_bench_prompts", None, "train", lambda row: row["prompt"][0])
ALPACA = HubSource("tatsu-lab/alpaca", None, "train", _alpaca)


def load_texts(source: HubSource, task: str) -> list[str]:
    """Every prompt of a data set, from the local cache or the hub.

    Raises DataError, in one line that names ``--task-file``, when it is in neither or has other fields.
    """
    import datasets

    log.info("task %s: loading %s", task, source.dataset)
    try:
        with quiet_retries():
            rows = datasets.load_dataset(source.dataset, source.config, split=source.split)
        return [source.prompt(row) for row in rows]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"task {task!r} needs the data set {source.dataset}, which cannot be had here "
            f"({type(error).__name__}: {reason}); give prompts of your own with "
            f"--task-file {task}=FILE.jsonl, or {task}=FILE.jsonl in eval.tasks"
        ) from error
