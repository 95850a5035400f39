"""What passes between a writer and the session: samples to answer, and what became of each."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from deepspec.data.prompts import Prompt
from deepspec.sampling import SamplingParams

FinishReason = Literal["stop", "length", "tool_calls"]
#: Why a sample is not in the file. Those that failed are tried again; the others would come out the same.
LeftOutKind = Literal["failed", "cut", "empty", "unusable"]


@dataclass(frozen=True)
class Sample:
    """A row of the source, counted from 1, and what it asks."""

    number: int
    prompt: Prompt


@dataclass(frozen=True)
class Reply:
    """What the target wrote in one turn.

    Attributes:
        seed: that it was asked for with.
        num_tokens: a stop token included; None where a server does not say.
        tokens: their ids, where they are known.
        extra: ``reasoning_content`` and ``tool_calls``, as a message has them.
    """

    text: str
    finish_reason: FinishReason
    seed: int
    num_tokens: int | None = None
    tokens: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A sample as a row of training text, without its settings.

    ``turns`` says of each reply where it stands and how it was made; ``num_tokens`` is None where one of them
    is not known.
    """

    sample: Sample
    row: Mapping[str, Any]
    turns: tuple[Mapping[str, Any], ...]
    finish_reason: FinishReason
    num_tokens: int | None


@dataclass(frozen=True)
class LeftOut:
    """A sample that gave no text, and why."""

    sample: Sample
    kind: LeftOutKind
    reason: str


Outcome = Written | LeftOut


class Writer(Protocol):
    """Whoever has the target write."""

    @property
    def params(self) -> SamplingParams:
        """Of every turn; the seed, 0 when None, is the root of all seeds."""

    @property
    def concurrency(self) -> int:
        """Samples that are being written at once, at most."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a file to be gone on with: the model."""

    def details(self) -> dict[str, Any]:
        """What is recorded beside it and may change: where it runs, versions."""

    def write(self, samples: Iterator[Sample]) -> Generator[Outcome]:
        """What becomes of each sample, in whatever order; takes no more of them than it works on.

        Raises ConfigError and ServerError when it makes no sense to go on.
        """
