"""Tokenised documents with their supervised mask, cut into pieces that fit a training row.

A document longer than a row becomes several pieces; each piece is on its own from then on (its positions
start at 0), because the target sees no further back than the row. The split into training and held-out
text goes by document, so no document is on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.data.documents import Document, documents
from deepspec.data.examples import Example
from deepspec.data.mapped import MappedFile
from deepspec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: What is gone through at once, so that no index of all of it is made.
_PART = 1 << 18


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """Pieces of documents, in flat tensors that may lie in a file.

    Attributes:
        tokens: int32 ``[T]``, of these pieces and perhaps of others.
        supervised: bool ``[T]``.
        ends: int64 ``[pieces]``, where each piece stops in ``tokens``.
        documents: integers ``[pieces]``, the number of the document a piece is from.
        sizes: int32 ``[pieces]``, tokens of each; None when each starts where the one before stops.
        file: what the tensors are views of, when they lie in a file.
    """

    tokens: Tensor
    supervised: Tensor
    ends: Tensor
    documents: Tensor
    sizes: Tensor | None = None
    file: MappedFile | None = None

    @property
    def num_pieces(self) -> int:
        return len(self.ends)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) if self.sizes is None else int(self.sizes.sum())

    def lengths(self) -> Tensor:
        """int32 ``[pieces]``."""
        if self.sizes is not None:
            return self.sizes
        found = torch.empty(self.num_pieces, dtype=torch.int32)
        for part in self._ranges():
            starts, ends = self._bounds(part)
            found[part] = (ends - starts).int()
        return found

    def piece(self, number: int) -> tuple[Tensor, Tensor]:
        """Tokens and supervised of one piece."""
        end = int(self.ends[number])
        if self.sizes is not None:
            start = end - int(self.sizes[number])
        else:
            start = int(self.ends[number - 1]) if number else 0
        return self.tokens[start:end], self.supervised[start:end]

    def release(self) -> None:
        """Have what was read of a file no longer count as this process's memory; it is read again."""
        if self.file is not None:
            self.file.release()

    def view(self, pieces: Tensor) -> TokenizedCorpus:
        """The corpus of some pieces (int64 indices, in the order given), in the same tensors."""
        lengths = self.lengths()
        documents = torch.empty(len(pieces), dtype=torch.int32)
        ends, sizes = torch.empty_like(documents, dtype=torch.int64), torch.empty_like(documents)
        for start in range(0, len(pieces), _PART):
            part = slice(start, start + _PART)
            some = pieces[part]
            documents[part], ends[part], sizes[part] = self.documents[some], self.ends[some], lengths[some]
            self.release()
        return replace(self, ends=ends, documents=documents, sizes=sizes)

    def select(self, pieces: Tensor) -> TokenizedCorpus:
        """The corpus of some pieces (int64 indices, in the order given), copied one after the other."""
        found = [self.piece(number) for number in pieces.tolist()]
        # No index of every token, which would be larger than the tokens.
        tokens, supervised = (
            torch.cat([flat[:0], *(piece[place] for piece in found)])
            for place, flat in enumerate((self.tokens, self.supervised))
        )
        ends = self.lengths()[pieces].long().cumsum(0)
        return TokenizedCorpus(tokens, supervised, ends, self.documents[pieces])

    def label_counts(self, vocab_size: int) -> Tensor:
        """How often each token is supervised, int64 ``[V]``."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for part in self._parts():
            counts += torch.bincount(self.tokens[part][self.supervised[part]], minlength=vocab_size)
            self.release()
        return counts

    def _parts(self) -> Iterator[slice]:
        """All tokens, in slices of at most ``_PART`` that end where a piece does not follow, or before."""
        for part in self._ranges():
            starts, ends = self._bounds(part)
            breaks = (starts[1:] != ends[:-1]).nonzero()[:, 0].tolist()
            firsts, lasts = [0, *(place + 1 for place in breaks)], [*breaks, len(ends) - 1]
            for first, last in zip(firsts, lasts, strict=True):
                stop = int(ends[last])
                for start in range(int(starts[first]), stop, _PART):
                    yield slice(start, min(start + _PART, stop))

    def _ranges(self) -> Iterator[slice]:
        """All pieces, in slices of at most ``_PART``."""
        for start in range(0, self.num_pieces, _PART):
            yield slice(start, min(start + _PART, self.num_pieces))
            self.release()

    def _bounds(self, part: slice) -> tuple[Tensor, Tensor]:
        """Where each of some pieces starts and stops in ``tokens``."""
        ends = self.ends[part]
        if self.sizes is not None:
            return ends - self.sizes[part], ends
        before = self.ends[part.start - 1 : part.start] if part.start else torch.zeros(1, dtype=torch.int64)
        return torch.cat([before, ends[:-1]]), ends


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
    found = list(
        pieces(examples, tokenizer, sequence_length=sequence_length, reserved_token_ids=reserved_token_ids)
    )
    tokens, supervised, owners = zip(*found, strict=True)
    ends = torch.tensor([len(piece) for piece in tokens]).cumsum(0)
    return TokenizedCorpus(torch.cat(tokens), torch.cat(supervised), ends, torch.tensor(owners))


def pieces(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    reserved_token_ids: Sequence[int] = (),
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The pieces of :func:`tokenize` one by one: tokens, supervised, document; the same errors."""
    if sequence_length < 2:
        raise ConfigError(f"sequence_length must be at least 2, not {sequence_length}")
    is_empty = True
    for number, document in enumerate(documents(examples, tokenizer)):
        _check_reserved(document, tokenizer, reserved_token_ids)
        for start in range(0, len(document.tokens), sequence_length):
            piece = slice(start, start + sequence_length)
            if bool(document.supervised[piece][1:].any()):
                is_empty = False
                yield document.tokens[piece], document.supervised[piece], number
    if is_empty:
        raise _nothing_supervised(examples)


def _nothing_supervised(examples: Iterable[Example]) -> DataError:
    left = iter(examples)
    first = next(left, None)
    where = f" ({first.source} and on)" if first is not None else ""
    number = sum(1 for _ in left) + (first is not None)
    return DataError(
        f"no token is supervised in {number} examples{where}; give texts or responses of several tokens"
    )


def joined(one: TokenizedCorpus, other: TokenizedCorpus) -> TokenizedCorpus:
    """The pieces of both, those of ``one`` first.

    Of two parts of one text nothing is copied. A document that is in two texts counts as two.
    """
    if one.tokens.data_ptr() == other.tokens.data_ptr() and one.num_pieces and other.num_pieces:
        ends, found = torch.cat([one.ends, other.ends]), torch.cat([one.documents, other.documents])
        return replace(one, ends=ends, documents=found, sizes=torch.cat([one.lengths(), other.lengths()]))
    if not other.num_pieces:
        return one
    one, other = (each.select(torch.arange(each.num_pieces)) for each in (one, other))
    numbers = other.documents + (int(one.documents.max()) + 1 if one.num_pieces else 0)
    return TokenizedCorpus(
        torch.cat([one.tokens, other.tokens]),
        torch.cat([one.supervised, other.supervised]),
        torch.cat([one.ends, other.ends + one.num_tokens]),
        torch.cat([one.documents, numbers]),
    )


def split_held_out(
    corpus: TokenizedCorpus, fraction: float, seed: int
) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """(training, held-out), about ``fraction`` of the documents held out, at least one of at least two.

    Raises DataError when there is only one document and a part should be held out.
    """
    if fraction <= 0:
        return corpus, corpus.select(torch.arange(0))
    found = torch.cat([part.unique() for part in corpus.documents.split(_PART)]).unique()
    corpus.release()
    if len(found) < 2:
        raise DataError(
            "one document cannot be split into training and held-out text; give more documents, one a line"
        )
    count = min(max(1, round(len(found) * fraction)), len(found) - 1)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    is_document_held_out = torch.zeros(int(found[-1]) + 1, dtype=torch.bool)
    is_document_held_out[found[order[:count]]] = True
    is_held_out = torch.cat([is_document_held_out[part] for part in corpus.documents.split(_PART)])
    train = corpus.view((~is_held_out).nonzero()[:, 0])
    held_out = corpus.view(is_held_out.nonzero()[:, 0])
    corpus.release()
    return train, held_out


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
