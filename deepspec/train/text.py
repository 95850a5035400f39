"""The text of a run, tokenised: what to train on and what to validate on.

A folder that ``deepspec data prepare`` wrote brings its own held-out text; of other text a share is held out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.data import TokenizedCorpus, default_examples, split_held_out, tokenize_once
from deepspec.data.prepared import split_files
from deepspec.data.rows import ExampleFiles
from deepspec.paths import DEMO, asset

if TYPE_CHECKING:
    from deepspec.config import RunConfig
    from deepspec.data import Example
    from deepspec.strategy import Parts
    from deepspec.target import Target

logger = logging.getLogger(__name__)


def corpora(config: RunConfig, target: Target, parts: Parts) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """Training and held-out text, free of the token ids that the drafter reserves; raises DataError."""
    assert target.tokenizer is not None, "a loaded target always has its tokenizer"
    tokenizer = target.tokenizer

    def tokenized(examples: Iterable[Example]) -> TokenizedCorpus:
        return tokenize_once(
            examples,
            tokenizer,
            sequence_length=config.data.sequence_length,
            reserved_token_ids=parts.drafter.reserved_token_ids,
        )

    paths: Sequence[str | Path] = config.data.paths
    if not paths and config.target.name == DEMO:
        paths = (asset("demo-text/continuations.jsonl"),)  # what the demo target itself wrote
    if not paths:
        corpus = tokenized(default_examples(tokenizer.all_special_tokens))
        return split_held_out(corpus, config.data.held_out_fraction, config.seed)
    files, held_out = split_files(paths)
    corpus = tokenized(ExampleFiles(tuple(files)))
    if not held_out:
        return split_held_out(corpus, config.data.held_out_fraction, config.seed)
    logger.info("validating on %s", ", ".join(str(file) for file in held_out))
    return corpus, tokenized(ExampleFiles(tuple(held_out)))
