"""A running server's accepted length against ours, on the same prompts: does it read the drafter right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepspec.config import EvalConfig
from deepspec.errors import ConfigError
from deepspec.evaluate.acceptance import (
    Interval,
    PairedLengths,
    PromptLength,
    bootstrap_ratio,
    compare_lengths,
    prompt_lengths,
)
from deepspec.evaluate.decoding import decode_rounds
from deepspec.evaluate.measure import needs_memory, task_names
from deepspec.evaluate.report import as_json
from deepspec.evaluate.tasks import collect_prompts
from deepspec.formats.server import find_server
from deepspec.resources import memory
from deepspec.train.assemble import for_decoding

if TYPE_CHECKING:
    from deepspec.composed import Composed
    from deepspec.runs import Run


@dataclass(frozen=True)
class ServeCheck:
    """A server's accepted length beside ours.

    Attributes:
        theirs, ours: tokens gained a round, bonus token included. paired: theirs - ours, theirs / ours.
        num_draft: tokens that the server drafts, None where it does not say. draft_length: G of ours.
    """

    engine: str
    theirs: Interval | None
    ours: Interval | None
    paired: PairedLengths | None
    num_draft: int | None
    draft_length: int
    num_prompts: int

    @property
    def agrees(self) -> bool:
        """Whether the 95 % interval of the difference holds 0."""
        return self.paired is not None and self.paired.difference.low <= 0 <= self.paired.difference.high

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "schema": 1,
            "engine": self.engine,
            "accepted_length": as_json(self.theirs),
            "accepted_length_ours": as_json(self.ours),
            "difference": as_json(None if self.paired is None else self.paired.difference),
            "ratio": as_json(None if self.paired is None else self.paired.ratio),
            "agrees": self.agrees,
            "num_draft": self.num_draft,
            "draft_length": self.draft_length,
            "num_prompts": self.num_prompts,
        }


def serve_check(
    url: str,
    subject: Run | Composed,
    *,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str] = (),
    config: EvalConfig | None = None,
) -> ServeCheck:
    """Decode the tasks' prompts there, one at a time, and here.

    Raises:
        ConfigError: no such server, one that does not speculate, or that drafts another number of tokens.
        ResourceError: it does not answer.
    """
    settings = config or subject.config.eval
    server = find_server(url)
    model, parts = subject.target, for_decoding(subject.parts, subject.target)
    found = collect_prompts(task_names(tasks, task_files, settings), model, settings)
    prompts = [prompt for of_task in found.values() for prompt in of_task]
    theirs = [server.decode(prompt, settings) for prompt in prompts]
    length = parts.strategy.draft_length
    if server.num_draft is not None and server.num_draft != length:
        raise ConfigError(
            f"{url} drafts {server.num_draft} tokens a round and this drafter {length}; start it with "
            f"{length} (SGLang's --speculative-num-draft-tokens counts one more)"
        )
    with memory(lambda: needs_memory(settings)):
        ours = prompt_lengths(decode_rounds(model, parts, prompts, settings))
    return ServeCheck(
        engine=server.engine,
        theirs=_interval(theirs, settings.seed),
        ours=_interval(ours, settings.seed),
        paired=compare_lengths(theirs, ours, seed=settings.seed),
        num_draft=server.num_draft,
        draft_length=length,
        num_prompts=len(prompts),
    )


def _interval(lengths: Sequence[PromptLength], seed: int) -> Interval | None:
    gained, rounds = np.array(lengths, dtype=np.float64).reshape(-1, 2).T
    return bootstrap_ratio(gained, rounds, seed=seed)
