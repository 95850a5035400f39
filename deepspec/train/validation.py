"""Live evaluation: is it getting better? Measured on held-out text while it trains.

Expected accepted length over held-out rows, and accepted length in real decoding of held-out prompts, by the
engine and sampling of ``deepspec eval``: with the same checkpoint, prompts and settings the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepspec.data import BatchSampler, TokenizedCorpus
from deepspec.evaluate.acceptance import PromptLength, prompt_lengths
from deepspec.evaluate.decoding import Decoded, decode
from deepspec.train.assemble import for_decoding
from deepspec.types import TokenBatch

if TYPE_CHECKING:
    from deepspec.config import EvalConfig, RunConfig
    from deepspec.train.trainer import Trainer

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
        target = trainer.target
        if not (self.prompts and target.is_whole):
            return ValidationResult(expected, None)
        found = decode(target, for_decoding(trainer.parts, target), self.prompts, self.decoding)
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
    features, where the target's layers are not loaded.

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
