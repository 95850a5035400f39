"""Holds a conversation's loss mask to the chat template, token by token.

Before each of the assistant's turns stand exactly the tokens that decoding would give the target: the
template's text of what came before, with its generation prompt, tokenised as a whole. From there the turn is
supervised without a gap, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from deepspec.data.chat import encode_chat
from deepspec.data.documents import Document
from deepspec.data.examples import ChatExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def mask_problem(
    example: ChatExample, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """What is wrong with the masks of a conversation's documents, None when nothing is.

    ``documents`` are those of ``example``, in order.
    """
    replies = [index for index, message in enumerate(example.messages) if message.is_reply]
    runs = [(document, start) for document in documents for start in run_starts(document.supervised)]
    if len(runs) != len(replies):
        return f"{len(replies)} turns are the assistant's and {len(runs)} runs of tokens are supervised"
    for index, (document, start) in zip(replies, runs, strict=True):
        wanted = encode_chat(tokenizer, example.messages[:index], tools=example.tools, source=example.source)
        found = document.tokens[:start].tolist()
        if found != list(wanted):
            place = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
            return f"message {index + 1}: " + _difference(tokenizer, found, wanted, place)
    return None


def run_starts(supervised: Tensor) -> list[int]:
    """Where runs of supervised tokens begin in a mask ``[T]``."""
    before = supervised.roll(1)
    before[:1] = False
    return [int(place) for place in (supervised & ~before).nonzero().flatten()]


def _difference(
    tokenizer: PreTrainedTokenizerBase, found: Sequence[int], wanted: Sequence[int], place: int | None
) -> str:
    if place is None:
        return (
            f"{len(found)} tokens precede the supervised ones, and the template's generation prompt "
            f"has {len(wanted)}"
        )
    given, own = (tokenizer.convert_ids_to_tokens(ids[place]) for ids in (found, wanted))
    return f"token {place} is {given!r}, and in the template's generation prompt {own!r}"
