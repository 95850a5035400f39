"""The text that a configuration trains on, tokenised: what ``data.paths`` names, or the default text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data.cache import tokenize_once
from deepspec.data.corpus import TokenizedCorpus
from deepspec.data.default import default_examples
from deepspec.data.examples import read_examples
from deepspec.paths import DEMO, asset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deepspec.config import RunConfig


def training_text(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, reserved_token_ids: Sequence[int]
) -> TokenizedCorpus:
    """Training and held-out text together; raises DataError for text that cannot be used."""
    paths: Sequence[str | Path] = config.data.paths
    if not paths and config.target.name == DEMO:
        paths = (asset("demo-text/continuations.jsonl"),)  # what the demo target itself wrote
    examples = read_examples(paths) if paths else default_examples(tokenizer.all_special_tokens)
    return tokenize_once(
        examples,
        tokenizer,
        sequence_length=config.data.sequence_length,
        reserved_token_ids=reserved_token_ids,
    )
