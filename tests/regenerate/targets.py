"""A tiny target that writes text: in float64, so that what is decoded beside a sample never tells."""

from __future__ import annotations

from pathlib import Path

import torch

from deepspec.regenerate import EngineWriter
from deepspec.sampling import SamplingParams
from deepspec.target import Target, make_target
from tests.tiny_models import make
from tests.tiny_runs import VOCAB
from tests.tiny_tokenizer import END, tokenizer

#: Of its bytes only letters can be among the likeliest so many.
TOP_K = 8


def writing_target(folder: Path | None = None, dtype: torch.dtype = torch.float64) -> Target:
    """Random weights and a byte tokenizer; stored in ``folder`` when there is one."""
    words = tokenizer()
    model = make("qwen3", dtype, vocab_size=VOCAB, max_position_embeddings=128)
    letters = words.convert_tokens_to_ids([*map(chr, range(ord("a"), ord("z") + 1)), END])
    others = [token for token in range(VOCAB) if token not in letters]
    with torch.no_grad():
        model.lm_head.weight[others] = 0.0
        model.lm_head.weight[letters] *= 0.3
    if folder is not None:
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return make_target(model, words, name="tiny")


def engine_writer(target: Target, *, concurrency: int = 4) -> EngineWriter:
    params = SamplingParams(seed=3, max_tokens=12, top_k=TOP_K)
    return EngineWriter(target, params, concurrency=concurrency)
