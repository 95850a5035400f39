"""A document's tokens as they are shown: text of each, and whether it is supervised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepspec.data.check import mask_problem
from deepspec.data.documents import Document, documents
from deepspec.data.examples import ChatExample, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ShownToken:
    """One token: its id, what it decodes to by itself, and whether it is supervised."""

    id: int
    text: str
    supervised: bool


@dataclass(frozen=True)
class ShownDocument:
    """A document, and what its mask has against the chat template (None: nothing)."""

    source: str
    tokens: tuple[ShownToken, ...]
    problem: str | None

    @property
    def num_supervised(self) -> int:
        return sum(token.supervised for token in self.tokens)


def show_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[ShownDocument]:
    """The documents that training makes of an example; raises DataError when it makes none."""
    made = list(documents([example], tokenizer))
    problem = mask_problem(example, made, tokenizer) if isinstance(example, ChatExample) else None
    return [ShownDocument(one.source, _tokens(one, tokenizer), problem) for one in made]


def _tokens(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[ShownToken, ...]:
    return tuple(
        ShownToken(token, tokenizer.decode([token]), supervised)
        for token, supervised in zip(document.tokens.tolist(), document.supervised.tolist(), strict=True)
    )
