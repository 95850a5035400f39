"""Live evaluation: is it getting better? Measured on held-out text while it trains.

Expected accepted length over held-out rows, and accepted length in real decoding of held-out prompts, by the
engine and sampling of ``deepspec eval``: with the same checkpoint, prompts and settings the same number.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.data import BatchSampler, TokenizedCorpus
from deepspec.evaluate.acceptance import PromptLength, prompt_lengths
from deepspec.evaluate.decoding import Decoded, decode
from deepspec.paths import written_whole
from deepspec.resources import writing
from deepspec.types import TokenBatch

if TYPE_CHECKING:
    from deepspec.config import EvalConfig, RunConfig
    from deepspec.target import Target
    from deepspec.train.trainer import Trainer

logger = logging.getLogger(__name__)

#: In a run's folder, what its live evaluations decode.
PROMPTS_FILE = "live-prompts.jsonl"
_NUM_BATCHES = 4
_PROMPT_TOKENS = 64
#: Prompts whose decoded text is kept.
_NUM_SAMPLES = 4


@dataclass(frozen=True)
class Validation:
    """Fixed held-out text to measure a draft model on while it trains, and how its prompts are decoded."""

    batches: tuple[TokenBatch, ...]
    prompts: tuple[tuple[int, ...], ...]
    decoding: EvalConfig

    @classmethod
    def of(cls, corpus: TokenizedCorpus, config: RunConfig, *, max_positions: int) -> Validation:
        """The first rows and documents of a held-out corpus."""
        rows = {"sequences": config.train.sequences_per_step, "sequence_length": config.data.sequence_length}
        sampler = BatchSampler(corpus, **rows, seed=0)
        count = min(_NUM_BATCHES, -(-sampler.num_rows // sampler.sequences))
        found = sampler.rows_once()
        tokens = config.train.validate_tokens
        return cls(
            batches=tuple(next(found) for _ in range(count)),
            prompts=_prompts(corpus, config.train.validate_prompts, max_positions - tokens),
            decoding=config.eval.model_copy(update={"max_tokens": tokens}),
        )

    def measure(self, trainer: Trainer) -> ValidationResult:
        """Both numbers for the weights as they are; nothing is decoded without the target's layers."""
        expected = trainer.expected_accepted_length(self.batches)
        target, world = trainer.target, trainer.world
        if not (self.prompts and target.is_whole and not target.is_sharded):
            return ValidationResult(expected, None)
        found = decode(target, trainer.decoding_parts(), self.prompts, self.decoding, world=world)
        lengths = prompt_lengths([one.rounds for one in found])
        num_rounds = sum(one.rounds for one in lengths)
        tau = sum(one.gained for one in lengths) / num_rounds if num_rounds else None
        assert target.tokenizer is not None, "a loaded target always has its tokenizer"
        samples = [_sample(one, target.tokenizer) for one in found[:_NUM_SAMPLES]]
        return ValidationResult(expected, tau, tuple(lengths), tuple(samples))


@dataclass(frozen=True)
class ValidationResult:
    """Accepted lengths, bonus token included: by the formula on held-out text, and as decoded.

    ``accepted_length`` is None when no held-out document is long enough to start from, and with stored
    features, where the target's layers are not loaded, or where they are shared out among processes.

    Attributes:
        prompts: tokens gained and rounds of each prompt.
        samples: the first few prompts with what was decoded after them.
    """

    expected_accepted_length: float
    accepted_length: float | None
    prompts: tuple[PromptLength, ...] = ()
    samples: tuple[dict[str, Any], ...] = ()


def _sample(one: Decoded, tokenizer: Any) -> dict[str, Any]:
    [(gained, rounds)] = prompt_lengths([one.rounds])
    return {
        "prompt": tokenizer.decode(one.completion.prompt),
        "text": tokenizer.decode(one.completion.tokens),
        "accepted_length": gained / rounds if rounds else None,
        "rounds": [round_.emitted for round_ in one.rounds],
    }


def _prompts(corpus: TokenizedCorpus, count: int, limit: int) -> tuple[tuple[int, ...], ...]:
    """Beginnings of held-out pieces: up to the first supervised token, or the first half of running text."""
    prompts: list[tuple[int, ...]] = []
    for number in range(corpus.num_pieces):
        tokens, supervised = corpus.piece(number)
        first = int(supervised.int().argmax())
        length = first if first > 1 else min(_PROMPT_TOKENS, len(tokens) // 2)
        if 2 <= length <= limit:
            prompts.append(tuple(tokens[:length].tolist()))
        if len(prompts) == count:
            break
    corpus.release()
    return tuple(prompts)


def write_prompts(folder: Path, validation: Validation) -> None:
    """The prompts of live evaluations, as a file that ``deepspec eval --task-file`` reads."""
    path = folder / PROMPTS_FILE
    text = "".join(json.dumps({"tokens": prompt}) + "\n" for prompt in validation.prompts)
    if text and not path.is_file():
        with writing(path, lambda: "make room and try again"), written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")


def say_what_is_not_decoded(validation: Validation, target: Target) -> None:
    """Log why live evaluations decode nothing, where they do not."""
    if not target.is_whole:
        why = "the target's decoder layers are not loaded (--set features.load_target=true loads them)"
    elif target.is_sharded:
        why = "the target's layers are shared out among the processes (target.parallel)"
    elif not validation.prompts:
        why = "no held-out document is long enough to start from"
    else:
        return
    logger.info("live evaluations decode nothing: %s; the best step is that by held-out text alone", why)
