"""Examples as tokens, each with its supervised mask; what the target would see, token by token.

A conversation's prompt is tokenised as decoding does it: where a token would reach across the end of a
generation prompt, the text is cut there, so that the prompt's tokens are the same in training and in use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.data import chat
from deepspec.data.examples import ChatExample, Example, TextExample
from deepspec.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents handed to the tokenizer at once: enough to use its threads, few enough to bound the memory.
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Document:
    """A document's tokens.

    Attributes:
        source: ``file:line``. tokens: int32 ``[T]``. supervised: bool ``[T]``.
    """

    source: str
    tokens: Tensor
    supervised: Tensor


def documents(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """The documents of examples, in order: one each, but for a template that rewrites earlier turns.

    Raises DataError when a conversation has no chat template to go by, or one that refuses it.
    """
    left = iter(examples)
    while chunk := list(islice(left, _CHUNK)):
        for is_chat, group in groupby(chunk, key=lambda e: isinstance(e, ChatExample)):
            if is_chat:
                yield from _chat_documents([e for e in group if isinstance(e, ChatExample)], tokenizer)
            else:
                yield from _encode([_render(e) for e in group if not isinstance(e, ChatExample)], tokenizer)


def _chat_documents(
    examples: Sequence[ChatExample], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Document]:
    chat.require_template(tokenizer, examples[0].source)
    marks = chat.marks_assistant(
        tokenizer
    )  # it would mark an end that a reply that was cut off does not have
    for is_marked, group in groupby(examples, key=lambda example: marks and example.is_complete):
        if not is_marked:
            yield from _encode(
                [doc for example in group for doc in chat.render_chat(example, tokenizer)], tokenizer
            )
            continue
        for example in group:
            ids, mask = chat.marked_tokens(example, tokenizer)
            yield Document(
                example.source, torch.tensor(ids, dtype=torch.int32), torch.tensor(mask, dtype=torch.bool)
            )


def _render(example: Example) -> chat.Rendered:
    assert not isinstance(example, ChatExample)
    if isinstance(example, TextExample):
        text, start = example.text, 0
    else:
        text, start = example.prompt + example.response, len(example.prompt)
    spans = ((start, len(text)),)
    return chat.Rendered(example.source, text, spans, is_templated=False, is_complete=example.is_complete)


def _encode(rendered: Sequence[chat.Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """Tokenise documents of one kind; a token is supervised when its last character lies in a span."""
    is_partial = any(item.spans != ((0, len(item.text)),) for item in rendered)
    if is_partial and not tokenizer.is_fast:
        raise DataError(
            f"{rendered[0].source}: {type(tokenizer).__name__} does not say which characters a token "
            'stands for; use a tokenizer with a tokenizer.json, or give {"text"} only'
        )
    is_templated = rendered[0].is_templated
    encoded = tokenizer(
        [item.text for item in rendered],
        add_special_tokens=not is_templated,
        return_special_tokens_mask=not is_templated,
        return_offsets_mapping=is_partial,
        return_attention_mask=False,
        verbose=False,
    )
    for index, item in enumerate(rendered):
        ids: list[int] = encoded["input_ids"][index]
        mask = [True] * len(ids)
        if is_partial:
            ids, mask = _masked(item, ids, encoded["offset_mapping"][index], tokenizer)
        if not is_templated:
            added = encoded["special_tokens_mask"][index]
            ids, mask = _closed(ids, mask, added, tokenizer.eos_token_id, is_complete=item.is_complete)
        yield Document(
            item.source, torch.tensor(ids, dtype=torch.int32), torch.tensor(mask, dtype=torch.bool)
        )


def _masked(
    item: chat.Rendered,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[int], list[bool]]:
    """Tokens and mask, cut where a token would reach from a generation prompt into the reply."""
    cuts = [start for start, _ in item.spans if item.is_templated and _reaches_across(offsets, start)]
    if not cuts:
        return ids, [_inside(end, item.spans) for _, end in offsets]
    edges = [0, *cuts, len(item.text)]
    encoded = tokenizer(
        [item.text[start:end] for start, end in pairwise(edges)],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    shifted = [
        edge + end
        for edge, part in zip(edges[:-1], encoded["offset_mapping"], strict=True)
        for _, end in part
    ]
    return [token for part in encoded["input_ids"] for token in part], [
        _inside(end, item.spans) for end in shifted
    ]


def _reaches_across(offsets: Sequence[tuple[int, int]], place: int) -> bool:
    index = bisect_right(offsets, place, key=lambda offset: offset[1])
    return index < len(offsets) and offsets[index][0] < place


def _inside(end: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < end <= stop for start, stop in spans)


def _closed(
    ids: list[int], mask: list[bool], added: Sequence[int], end_id: int | None, *, is_complete: bool
) -> tuple[list[int], list[bool]]:
    """A complete document with its end token, supervised, another without one.

    Other tokens that the tokenizer added are not text.
    """
    mask = [flag and not extra for flag, extra in zip(mask, added, strict=True)]
    if end_id is None:
        return ids, mask
    if ids and added[-1] and ids[-1] == end_id:
        ids, mask = ids[:-1], mask[:-1]
    return ([*ids, end_id], [*mask, True]) if is_complete else (ids, mask)
