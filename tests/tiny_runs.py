"""A tiny target on disk, text for it, and a configuration that trains on them in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deepspec.config import RunConfig
from deepspec.runs import Run
from deepspec.strategy import Strategy
from deepspec.target import make_target
from deepspec.train.assemble import assemble
from tests.tiny_models import make
from tests.tiny_tokenizer import tokenizer

VOCAB = 260
#: What others read in an evaluation's JSON.
EVAL_KEYS = {
    "schema",
    "strategy",
    "target",
    "draft_length",
    "temperature",
    "num_prompts",
    "num_rounds",
    "accepted_length",
    "conditional_acceptance",
    "survival",
    "tokens_per_s",
    "tokens_per_s_plain",
    "speedup",
    "draft_ms",
    "verify_ms",
    "tasks",
    "device",
    "versions",
}


def save_target(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """A random Qwen3 with a byte tokenizer, laid out as the hub does."""
    make("qwen3", dtype, seed, vocab_size=VOCAB, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def untrained_run(**changes: object) -> Run:
    """A short DSpark drafter with random weights and its tiny target, in memory."""
    model = make("qwen3", torch.float32, vocab_size=VOCAB, **changes)
    target = make_target(model, tokenizer(), name="tiny")
    chosen = Strategy.named("dspark").replace(draft_length=3)
    parts = assemble(chosen, target, device=target.device, dtype=target.dtype, seed=0)
    return Run(path=Path("nowhere"), config=RunConfig(strategy=chosen), target=target, parts=parts, step=0)


def save_prompts(path: Path, prompts: list[str]) -> Path:
    """A task file of these prompts."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def save_text(path: Path, num_documents: int = 12) -> Path:
    """JSONL of text with much repetition, so that there is something to learn."""
    lines = [
        json.dumps({"text": f"document {n}: " + "the cat sat on the mat. " * 8}) for n in range(num_documents)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def strategy(name: str = "dspark", **changes: Any) -> Strategy:
    """A shallow, short version of a built-in composition."""
    small: dict[str, Any] = {"draft_length": 3, "drafter": {"num_layers": 1, "num_target_layers": 2}}
    if name == "dspark":
        small["head"] = {"rank": 8}
    return Strategy.named(name).replace(**small).replace(**changes)


def config(target: Path, text: Path, /, *, chosen: Strategy | None = None, **changes: Any) -> RunConfig:
    """Six steps of three rows of 64 tokens, on CPU; ``changes`` of a section are merged into it."""
    values: dict[str, Any] = {
        "strategy": chosen or strategy(),
        "target": {"name": str(target)},
        "data": {"paths": [str(text)], "sequence_length": 64, "held_out_fraction": 0.2},
        "train": {
            "num_steps": 6,
            "sequences_per_step": 3,
            "anchors_per_sequence": 5,
            "checkpoint_every": 3,
            "validate_every": 100,
            "log_every": 2,
        },
        "device": "cpu",
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    return RunConfig.model_validate(values)
