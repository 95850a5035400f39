"""Builds the demo target: a small, deep and thin Qwen3 trained on Python sources.

``python -m deepspec.target.demo build --out FOLDER`` trains the tokenizer and the model that the
package ships, on the standard library of the running CPython and on the installed packages named in
:mod:`deepspec.data.local_text`. Everything that decides the result is in ``RECIPE``; the outcome goes
to ``build-log.json`` beside the weights. Users never need to run this.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from deepspec.data.local_text import TARGET_PACKAGES, SourceFile, package_files, stdlib_files
from deepspec.environment import versions
from deepspec.paths import written_whole
from deepspec.target.model import Target
from deepspec.target.pretrain import Pretraining, Recipe, fit, perplexity, save_model

log = logging.getLogger(__name__)

END, MASK, TURN_START, TURN_END = "<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


#: What the demo target is made from and how.
RECIPE = Recipe(
    vocab_size=2_048,
    num_layers=12,
    hidden_size=192,
    intermediate_size=512,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    context=512,
    sequences_per_step=4,
    num_steps=5_000,
    stop_step=3_500,  # at a quarter of the peak rate
    warmup_steps=100,
    learning_rate=4e-3,
    stdlib_repeats=3,
    package_byte_limit=10_000_000,
    seed=0,
)
_FILES_AT_ONCE = 512  # handed to the tokenizer: enough for its threads, few enough to bound the memory
_TOKENIZER_FILES = 2_500


def corpus_files(recipe: Recipe, packages: Sequence[str]) -> list[SourceFile]:
    """The training files: the standard library (repeated) and a bounded share of each package."""
    files = stdlib_files(held_out=False) * recipe.stdlib_repeats
    for name in packages:
        candidates = sorted(package_files([name]), key=lambda f: hashlib.sha256(f.name.encode()).digest())
        used = 0
        for file in candidates:
            used += file.path.stat().st_size
            if used > recipe.package_byte_limit:
                break
            files.append(file)
    return files


def train_tokenizer(files: Sequence[SourceFile], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of an even share of the files, with an end, a mask and two chat-turn tokens."""
    share = files[:: max(1, len(files) // _TOKENIZER_FILES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, MASK, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([file.text() for file in share], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def token_rows(
    tokenizer: transformers.PreTrainedTokenizerFast, files: Sequence[SourceFile], width: int
) -> Tensor:
    """All files, each closed by the end token, cut into rows ``[num_rows, width]``."""
    end = tokenizer.eos_token_id
    parts = []
    for start in range(0, len(files), _FILES_AT_ONCE):
        texts = [file.text() for file in files[start : start + _FILES_AT_ONCE]]
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts)
        ids = [token for one in encoded for token in (*one.ids, end)]
        parts.append(torch.tensor(ids, dtype=torch.int32))
    tokens = torch.cat(parts)
    return tokens[: len(tokens) // width * width].view(-1, width)


def held_out_perplexity(target: Target, files: Sequence[SourceFile], width: int = 512) -> float:
    """The same of a loaded target's model over ``files``, by transformers' own attention."""
    model = copy.deepcopy(target.model)
    model.set_attn_implementation("sdpa")
    return perplexity(model, token_rows(target.tokenizer, files, width))


def build(out: Path, recipe: Recipe) -> None:
    """Train tokenizer and model into ``out`` and write the build log."""
    out.mkdir(parents=True, exist_ok=True)
    files = corpus_files(recipe, TARGET_PACKAGES)
    tokenizer = train_tokenizer(files, recipe.vocab_size)
    tokenizer.save_pretrained(out)
    rows = token_rows(tokenizer, files, recipe.context)
    held_out = token_rows(tokenizer, stdlib_files(held_out=True), recipe.context)
    log.info("corpus %d files, %d tokens; held out %d tokens", len(files), rows.numel(), held_out.numel())
    training = Pretraining(recipe, tokenizer.eos_token_id, device=torch.device("cpu"), compiled=True)
    fit(
        training,
        rows,
        held_out,
        log_every=250,
        on_point=lambda: save_model(training.model, out),
        is_over=lambda: False,
    )
    corpus = corpus_record(files, rows.numel(), TARGET_PACKAGES)
    write_build_log(out, training, corpus, held_out.numel())


def corpus_record(files: Sequence[SourceFile], num_tokens: int, packages: Sequence[str]) -> dict[str, Any]:
    """What decided the training text."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.path.read_bytes())
    return {
        "sha256": digest.hexdigest(),
        "num_files": len(files),
        "num_tokens": num_tokens,
        "packages": {name: metadata.version(name) for name in packages},
    }


def write_build_log(
    out: Path, training: Pretraining, corpus: dict[str, Any], num_held_out_tokens: int
) -> None:
    """Everything that decided the model in ``out``, and how training went."""
    record = {
        "recipe": dataclasses.asdict(training.recipe),
        "corpus": corpus,
        "held_out_tokens": num_held_out_tokens,
        "curve": training.curve,
        "versions": versions(),
        "sha256": {p.name: sha256(p) for p in sorted(out.glob("*.safetensors"))},
    }
    with written_whole(out / "build-log.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Train the demo target and write it to ``--out``."""
    """Train the demo target and write it to ``--out``."""
    parser = argparse.ArgumentParser(prog="python -m deepspec.target.demo", description=__doc__)
    parser.add_argument("action", choices=["build"])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build(arguments.out, RECIPE)


if __name__ == "__main__":
    main()
