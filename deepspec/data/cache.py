"""Token ids kept between runs below the cache root, so that the same text is tokenised once.

An entry is a safetensors file whose name is a hash of all that decides what is in it: the examples, the
tokenizer, the settings and the versions. It is written piece by piece and read through memory mapping, so
memory does not grow with the text. An entry that cannot be read or written is logged and done without; the
folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from deepspec.data.corpus import TokenizedCorpus, pieces, tokenize
from deepspec.data.examples import Example
from deepspec.data.mapped import MappedFile, write_pieces
from deepspec.environment import versions
from deepspec.paths import cache_root, remove_left

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

#: Grows when the same text and tokenizer come to other tokens.
_FORMAT = 2
_DTYPES = {
    "tokens": torch.int32,
    "supervised": torch.bool,
    "ends": torch.int64,
    "documents": torch.int64,
}


def tokenize_once(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    reserved_token_ids: Sequence[int] = (),
) -> TokenizedCorpus:
    """What :func:`tokenize` makes of the same arguments, from the cache when it is there; the same errors.

    The examples are gone through twice, first to look for them in the cache, so files are not held in memory;
    nor are the tokens, which lie in the cache's file.

    Tokenizers without a tokenizer.json do not say all that they do, so theirs is never cached.
    """
    settings = (sequence_length, tuple(reserved_token_ids))
    path = _place(examples, tokenizer, settings) if tokenizer.is_fast else None
    if path is not None and (found := read(path)) is not None:
        return found
    if path is not None and _write(
        path,
        pieces(examples, tokenizer, sequence_length=sequence_length, reserved_token_ids=reserved_token_ids),
    ):
        found = read(path)
    return found or tokenize(
        examples, tokenizer, sequence_length=sequence_length, reserved_token_ids=reserved_token_ids
    )


def _place(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, settings: tuple[object, ...]
) -> Path:
    kind = type(tokenizer)
    own = (kind.__module__, kind.__qualname__, tokenizer.eos_token_id, tokenizer.chat_template)
    digest = hashlib.sha256(repr((_FORMAT, versions(), own, settings)).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for example in examples:
        digest.update(repr(example).encode())
    return cache_root() / "tokens" / f"{digest.hexdigest()[:32]}.safetensors"


def read(path: Path) -> TokenizedCorpus | None:
    """The tokens of a file, mapped; None where there are none, and a warning where it is damaged."""
    if not path.exists():
        return None
    try:
        file = MappedFile(path)
    except (OSError, ValueError, SafetensorError) as error:
        logger.warning("cached tokens %s are damaged and made anew: %s", path, error)
        return None
    tensors = file.tensors
    if not _is_corpus(tensors):
        logger.warning("%s holds something else than cached tokens; they are made anew", path)
        return None
    logger.debug("tokens are read from %s", path)
    total = int(tensors["ends"][-1])
    flat = {name: tensors[name][:total] for name in ("tokens", "supervised")}
    return TokenizedCorpus(**flat, ends=tensors["ends"], documents=tensors["documents"], file=file)


def _is_corpus(tensors: dict[str, Tensor]) -> bool:
    if {name: tensor.dtype for name, tensor in tensors.items()} != _DTYPES:
        return False
    num_tokens, num_pieces = len(tensors["tokens"]), len(tensors["ends"])
    return (
        num_pieces > 0
        and num_tokens - 1 <= int(tensors["ends"][-1]) <= num_tokens == len(tensors["supervised"])
        and len(tensors["documents"]) == num_pieces
    )


def _write(path: Path, found: Iterable[tuple[Tensor, Tensor, int]]) -> bool:
    """Whether it could be written; raises what going through the pieces raises."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path)
        write_pieces(path, found)
    except OSError as error:
        logger.warning(
            "tokens cannot be cached as %s, are held in memory, and are made again next time: %s", path, error
        )
        return False
    return True
