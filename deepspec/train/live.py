"""Follows a run's live evaluations: which step is the best one, and whether training still gets anywhere.

All of it is read from ``log.jsonl`` again when a run goes on, so an interrupted run chooses and stops as an
uninterrupted one does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.choice import BEST_FILE, chosen_state
from deepspec.evaluate.acceptance import PromptLength, compare_lengths
from deepspec.runs import checkpoint_path, checkpoints, newest_checkpoint
from deepspec.train.checkpoint import read_weights
from deepspec.train.logs import read_lines

if TYPE_CHECKING:
    from deepspec.strategy import Parts
    from deepspec.train.logs import RunLog
    from deepspec.train.validation import ValidationResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Evaluation:
    """One live evaluation: ``prompts`` are each prompt's tokens gained and rounds, where it decoded."""

    step: int
    accepted_length: float | None
    expected_accepted_length: float
    prompts: tuple[PromptLength, ...]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> _Evaluation:
        prompts = tuple(PromptLength(*pair) for pair in line.get("prompts", ()))
        return cls(line["step"], line["accepted_length"], line["expected_accepted_length"], prompts)

    @property
    def value(self) -> float:
        if self.accepted_length is None:
            return self.expected_accepted_length
        return self.accepted_length

    def is_clearly_better(self, other: _Evaluation) -> bool:
        """By more than chance: the 95 % interval of the difference, prompt by prompt, lies above 0.

        The expected accepted length is no draw, so that any more of it counts.
        """
        if not (self.prompts and len(self.prompts) == len(other.prompts)):
            return self.value > other.value
        found = compare_lengths(self.prompts, other.prompts)
        return found is not None and found.difference.low > 0


class LiveEvaluations:
    """Those of a run, from its first one on.

    Args:
        patience: how many in a row may be no clear gain before training stops; None never stops it.
    """

    def __init__(self, folder: Path, log: RunLog, *, patience: int | None) -> None:
        self._folder, self._log, self._patience = folder, log, patience
        lines = [line for line in read_lines(folder / "log.jsonl") if line.get("kind") == "validation"]
        self._found = [_Evaluation.of(line) for line in lines]
        self.keep_best()

    def has(self, step: int) -> bool:
        """Whether this step's evaluation is logged."""
        return any(one.step == step for one in self._found)

    def add(self, step: int, found: ValidationResult) -> bool:
        """Log an evaluation; whether its checkpoint, which has to be written then, is the best so far."""
        self._log.samples(step, found.samples)
        values = {
            "expected_accepted_length": found.expected_accepted_length,
            "accepted_length": found.accepted_length,
            "prompts": found.prompts,
        }
        self._log.write("validation", {"step": step, **values})
        self._found.append(_Evaluation.of({"step": step, **values}))
        decoded = "-" if found.accepted_length is None else f"{found.accepted_length:.3f}"
        logger.info(
            "step %d: held-out text, expected accepted length %.3f, decoded %s",
            step,
            found.expected_accepted_length,
            decoded,
        )
        return self._best(self._found) is self._found[-1]

    @property
    def best(self) -> Path | None:
        """The best checkpoint that was written."""
        return None if self._kept is None else checkpoint_path(self._folder, self._kept.step)

    @property
    def reason_to_stop(self) -> str | None:
        """Why training gets nowhere any more; None while it may.

        Each evaluation is compared with the last that was a clear gain, so that small gains add up to one.
        """
        if self._patience is None or not self._found:
            return None
        reference, waited = self._found[0], 0
        for one in self._found[1:]:
            is_gain = one.is_clearly_better(reference)
            reference, waited = (one, 0) if is_gain else (reference, waited + 1)
        if waited < self._patience:
            return None
        best = self._best(self._found)
        return (
            f"the last {waited} live evaluations were no clear gain on that of step {reference.step} "
            f"(train.patience={self._patience}); the best is step {best.step}, with accepted length "
            f"{best.value:.3f}"
        )

    def keep_best(self) -> None:
        """Name the best checkpoint that is there in ``best.json``."""
        written = checkpoints(self._folder)
        there = [one for one in self._found if checkpoint_path(self._folder, one.step) in written]
        self._kept = self._best(there) if there else None
        if self._kept is not None:
            values = {
                "step": self._kept.step,
                "accepted_length": self._kept.accepted_length,
                "expected_accepted_length": self._kept.expected_accepted_length,
            }
            self._log.replace(BEST_FILE, values)

    @staticmethod
    def _best(found: list[_Evaluation]) -> _Evaluation:
        """The highest accepted length, the last of several."""
        return max(reversed(found), key=lambda one: one.value)


def take_best(folder: Path, parts: Parts) -> int:
    """Load the best checkpoint into ``parts``; its step."""
    checkpoint, state = chosen_state(folder)
    read_weights(checkpoint, parts)
    step = int(state["step"])
    if checkpoint != newest_checkpoint(folder):
        logger.info("the best checkpoint is that of step %d; %s@last is the last", step, folder)
    return step
