"""Text to training batches: read examples, render chats, tokenise, split, pack; and the default text."""

from deepspec.data.batches import BatchSampler, batches
from deepspec.data.cache import tokenize_once
from deepspec.data.chat import encode_chat, encode_prompt
from deepspec.data.corpus import TokenizedCorpus, joined, split_held_out, tokenize
from deepspec.data.default import default_examples
from deepspec.data.examples import (
    ChatExample,
    Example,
    Message,
    ResponseExample,
    TextExample,
)
from deepspec.data.rows import read_examples

__all__ = [
    "BatchSampler",
    "ChatExample",
    "Example",
    "Message",
    "ResponseExample",
    "TextExample",
    "TokenizedCorpus",
    "batches",
    "default_examples",
    "encode_chat",
    "encode_prompt",
    "joined",
    "read_examples",
    "split_held_out",
    "tokenize",
    "tokenize_once",
]
