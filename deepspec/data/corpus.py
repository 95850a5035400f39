"""Tokenised documents with their supervised mask, cut into pieces that fit a training row.

A document longer than a row becomes several pieces; each piece is on its own from then on (its positions
start at 0), because the target sees no further back than the row. The split into training and held-out
text goes by document, so no document is on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.data.documents import Document, documents
from deepspec.data.examples import Example
from deepspec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: Tokens that are counted at once, so that no index of all of them is made.
_PART = 1 << 20


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """Pieces of documents, flat.

    Attributes:
        tokens: int32 ``[T]``, piece after piece.
        supervised: bool ``[T]``.
        ends: int64 ``[pieces]``, where each piece stops in ``tokens``.
        documents: int64 ``[pieces]``, the number of the document a piece is from.
    """

    tokens: Tensor
    supervised: Tensor
    ends: Tensor
    documents: Tensor

    @property
    def num_pieces(self) -> int:
        return len(self.ends)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def lengths(self) -> Tensor:
        """int64 ``[pieces]``."""
        return torch.diff(self.ends, prepend=torch.zeros(1, dtype=torch.int64))

    def select(self, pieces: Tensor) -> TokenizedCorpus:
        """The corpus of some pieces (int64 indices, in the order given)."""
        lengths = self.lengths()[pieces]
        ends = self.ends[pieces]
        places = [
            slice(end - length, end) for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]
        # No index of every token, which would be larger than the tokens.
        tokens, supervised = (
            torch.cat([flat[:0], *(flat[place] for place in places)])
            for flat in (self.tokens, self.supervised)
        )
        return TokenizedCorpus(tokens, supervised, lengths.cumsum(0), self.documents[pieces])

    def label_counts(self, vocab_size: int) -> Tensor:
        """How often each token is supervised, int64 ``[V]``."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for tokens, supervised in zip(self.tokens.split(_PART), self.supervised.split(_PART), strict=True):
            counts += torch.bincount(tokens[supervised], minlength=vocab_size)
        return counts


def tokenize(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    reserved_token_ids: Sequence[int] = (),
) -> TokenizedCorpus:
    """Tokenise examples and cut them into pieces of at most ``sequence_length`` tokens.

    Examples can be gone through again, and are, to name them when none of them is of use.
    Text is closed by the tokenizer's end token, supervised; so is a response. One that is not complete is
    not. Pieces in which nothing can be learned (no supervised token after another token) are left out.

    Raises DataError when a text uses a reserved token id, when a conversation has no chat template to go by,
    and when nothing at all is supervised.
    """
    if sequence_length < 2:
        raise ConfigError(f"sequence_length must be at least 2, not {sequence_length}")
    tokens: list[Tensor] = []
    supervised: list[Tensor] = []
    owners: list[int] = []
    for number, document in enumerate(documents(examples, tokenizer)):
        _check_reserved(document, tokenizer, reserved_token_ids)
        for start in range(0, len(document.tokens), sequence_length):
            piece = slice(start, start + sequence_length)
            if bool(document.supervised[piece][1:].any()):
                tokens.append(document.tokens[piece])
                supervised.append(document.supervised[piece])
                owners.append(number)
    if not tokens:
        sources = [example.source for example in examples]
        where = f" ({sources[0]} and on)" if sources else ""
        raise DataError(
            f"no token is supervised in {len(sources)} examples{where}; "
            "give texts or responses of several tokens"
        )
    ends = torch.tensor([len(piece) for piece in tokens]).cumsum(0)
    return TokenizedCorpus(torch.cat(tokens), torch.cat(supervised), ends, torch.tensor(owners))


def joined(one: TokenizedCorpus, other: TokenizedCorpus) -> TokenizedCorpus:
    """The pieces of both, those of ``one`` first; a document that is in both counts as two."""
    documents = other.documents + (int(one.documents.max()) + 1 if one.num_pieces else 0)
    return TokenizedCorpus(
        torch.cat([one.tokens, other.tokens]),
        torch.cat([one.supervised, other.supervised]),
        torch.cat([one.ends, other.ends + one.num_tokens]),
        torch.cat([one.documents, documents]),
    )


def split_held_out(
    corpus: TokenizedCorpus, fraction: float, seed: int
) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """(training, held-out), about ``fraction`` of the documents held out, at least one of at least two.

    Raises DataError when there is only one document and a part should be held out.
    """
    if fraction <= 0:
        return corpus, corpus.select(torch.arange(0))
    documents = torch.tensor(sorted(set(corpus.documents.tolist())))
    if len(documents) < 2:
        raise DataError(
            "one document cannot be split into training and held-out text; give more documents, one a line"
        )
    count = min(max(1, round(len(documents) * fraction)), len(documents) - 1)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    is_held_out = torch.isin(corpus.documents, documents[order[:count]])
    pieces = torch.arange(corpus.num_pieces)
    return corpus.select(pieces[~is_held_out]), corpus.select(pieces[is_held_out])


def _check_reserved(
    document: Document, tokenizer: PreTrainedTokenizerBase, reserved_token_ids: Sequence[int]
) -> None:
    for reserved in reserved_token_ids:
        if bool((document.tokens == reserved).any()):
            token = tokenizer.convert_ids_to_tokens(reserved)
            raise DataError(
                f"{document.source}: the text uses the token {token!r} (id {reserved}), to which the drafter "
                "gives a meaning of its own; remove it from the text, or give the drafter another"
            )
