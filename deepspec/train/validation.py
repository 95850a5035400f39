"""Is it getting better? Expected accepted length on held-out text, and accepted length in real decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deepspec.data import BatchSampler, TokenizedCorpus
from deepspec.engine import Engine, SamplingParams
from deepspec.evaluate.acceptance import tokens_gained
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
        target = trainer.target
        prompts = self.prompts if target.is_whole and not target.is_sharded else ()
        expected = trainer.expected_accepted_length(self.batches)
        if not prompts:
            return ValidationResult(expected, None)
        first, last = trainer.world.share(len(prompts))
        lengths = decoded_lengths(target, trainer.decoding_parts(), prompts, range(first, last))
        total, count = trainer.world.add_up([sum(lengths), len(lengths)])
        return ValidationResult(expected, total / count if count else None)


@dataclass(frozen=True)
class ValidationResult:
    """Accepted lengths, bonus token included: by the formula on held-out text, and as decoded.

    ``accepted_length`` is None when no held-out document is long enough to start from, and with stored
    features, where the target's layers are not loaded, or where they are shared out among processes.
    """

    expected_accepted_length: float
    accepted_length: float | None


def decoded_lengths(
    target: Target, parts: Parts, prompts: Sequence[tuple[int, ...]], numbers: Sequence[int]
) -> list[int]:
    """Accepted length of each round of a short decode of the prompts with these numbers, at temperature 1.

    A prompt's noise depends on its number alone.
    """
    if not numbers:
        return []
    lengths: list[int] = []

    def observe(record: RoundRecord) -> None:
        lengths.extend(tokens_gained(request) for request in record.requests)

    engine = Engine(
        target,
        parts,
        max_batch=len(numbers),
        max_positions=max(len(prompt) for prompt in prompts) + _NEW_TOKENS,
        observers=[observe],
    )
    params = SamplingParams(max_tokens=_NEW_TOKENS, ignore_stop=True)
    engine.run([prompts[n] for n in numbers], [replace(params, seed=number) for number in numbers])
    return lengths


def _prompts(corpus: TokenizedCorpus, limit: int) -> tuple[tuple[int, ...], ...]:
    """Beginnings of held-out pieces: up to the first supervised token, or the first half of running text."""
    prompts = []
    start = 0
    for end in corpus.ends.tolist():
        first = int(corpus.supervised[start:end].int().argmax())
        length = first if first > 1 else min(_PROMPT_TOKENS, (end - start) // 2)
        if 2 <= length <= limit:
            prompts.append(tuple(corpus.tokens[start : start + length].tolist()))
        if len(prompts) == _NUM_PROMPTS:
            break
        start = end
    return tuple(prompts)
