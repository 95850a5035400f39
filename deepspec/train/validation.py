"""Is it getting better? Expected accepted length on held-out text, and accepted length in real decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deepspec.data import BatchSampler, TokenizedCorpus
from deepspec.engine import Engine, SamplingParams
from deepspec.evaluate.acceptance import tokens_gained
from deepspec.train.assemble import for_decoding
from deepspec.types import RoundRecord, TokenBatch

if TYPE_CHECKING:
    from deepspec.strategy import Parts
    from deepspec.target import Target
    from deepspec.train.trainer import Trainer

_NUM_BATCHES = 4
_NUM_PROMPTS = 8
_PROMPT_TOKENS = 64
_NEW_TOKENS = 32


@dataclass(frozen=True)
class Validation:
    """Fixed held-out text to measure a draft model on while it trains."""

    batches: tuple[TokenBatch, ...]
    prompts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, corpus: TokenizedCorpus, *, sequences: int, sequence_length: int, max_positions: int
    ) -> Validation:
        """The first rows and documents of a held-out corpus."""
        sampler = BatchSampler(corpus, sequences=sequences, sequence_length=sequence_length, seed=0)
        count = min(_NUM_BATCHES, -(-sampler.num_rows // sequences))
        rows = sampler.rows_once()
        return cls(
            batches=tuple(next(rows) for _ in range(count)),
            prompts=_prompts(corpus, max_positions - _NEW_TOKENS),
        )

    def measure(self, trainer: Trainer) -> ValidationResult:
        """Both numbers for the weights as they are; nothing is decoded without the target's layers."""
        prompts = self.prompts if trainer.target.is_whole else ()
        return ValidationResult(
            expected_accepted_length=trainer.expected_accepted_length(self.batches),
            accepted_length=decoded_accepted_length(trainer.target, trainer.parts, prompts),
        )


@dataclass(frozen=True)
class ValidationResult:
    """Accepted lengths, bonus token included: by the formula on held-out text, and as decoded.

    ``accepted_length`` is None when no held-out document is long enough to start from, and with stored
    features, where the target's layers are not loaded.
    """

    expected_accepted_length: float
    accepted_length: float | None


def decoded_accepted_length(target: Target, parts: Parts, prompts: Sequence[tuple[int, ...]]) -> float | None:
    """Mean accepted length over the rounds of a short decode of ``prompts`` at temperature 1, noise fixed."""
    if not prompts:
        return None
    lengths: list[int] = []

    def observe(record: RoundRecord) -> None:
        lengths.extend(tokens_gained(request) for request in record.requests)

    engine = Engine(
        target,
        for_decoding(parts, target),
        max_batch=len(prompts),
        max_positions=max(len(prompt) for prompt in prompts) + _NEW_TOKENS,
        observers=[observe],
    )
    params = SamplingParams(max_tokens=_NEW_TOKENS, ignore_stop=True)
    engine.run(prompts, [replace(params, seed=number) for number in range(len(prompts))])
    return sum(lengths) / len(lengths) if lengths else None


def _prompts(corpus: TokenizedCorpus, limit: int) -> tuple[tuple[int, ...], ...]:
    """Beginnings of held-out pieces: up to the first supervised token, or the first half of running text."""
    prompts = []
    for number in range(corpus.num_pieces):
        tokens, supervised = corpus.piece(number)
        first = int(supervised.int().argmax())
        length = first if first > 1 else min(_PROMPT_TOKENS, len(tokens) // 2)
        if 2 <= length <= limit:
            prompts.append(tuple(tokens[:length].tolist()))
        if len(prompts) == _NUM_PROMPTS:
            break
    return tuple(prompts)
