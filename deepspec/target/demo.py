"""Builds the demo target: a small, deep and thin Qwen3 trained on Python sources.

``python -m deepspec.target.demo build --out FOLDER`` trains the tokenizer and the model that the
package ships, on the standard library of the running CPython and on the installed packages named in
:mod:`deepspec.data.local_text`. Everything that decides the result is in ``Recipe``; the outcome goes
to ``build-log.json`` beside the weights. Users never need to run this.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from deepspec.data.local_text import TARGET_PACKAGES, SourceFile, package_files, stdlib_files
from deepspec.environment import versions
from deepspec.target.model import Target

log = logging.getLogger(__name__)

END, MASK, TURN_START, TURN_END = "<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """What the demo target is made from and how."""

    vocab_size: int = 2_048
    num_layers: int = 12
    hidden_size: int = 192
    intermediate_size: int = 512
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    context: int = 512
    sequences_per_step: int = 4
    num_steps: int = 5_000  # of the learning-rate schedule
    stop_step: int = 3_500  # training ends here, at a quarter of the peak rate
    warmup_steps: int = 100
    learning_rate: float = 4e-3
    stdlib_repeats: int = 3
    package_byte_limit: int = 10_000_000
    seed: int = 0


def corpus_files(recipe: Recipe) -> list[SourceFile]:
    """The training files: the standard library (repeated) and a bounded share of each package."""
    files = stdlib_files(held_out=False) * recipe.stdlib_repeats
    for name in TARGET_PACKAGES:
        candidates = sorted(package_files([name]), key=lambda f: hashlib.sha256(f.name.encode()).digest())
        used = 0
        for file in candidates:
            used += file.path.stat().st_size
            if used > recipe.package_byte_limit:
                break
            files.append(file)
    return files


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE with an end, a mask and two chat-turn tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, MASK, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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
    ids: list[int] = []
    encoded = tokenizer.backend_tokenizer.encode_batch([file.text() for file in files])
    for row in encoded:
        ids += row.ids
        ids.append(end)
    usable = len(ids) // width * width
    return torch.tensor(ids[:usable], dtype=torch.int32).view(-1, width)


def new_model(recipe: Recipe, end_id: int) -> transformers.Qwen3ForCausalLM:
    """An untrained model of the recipe's shape, float32."""
    config = transformers.Qwen3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return transformers.Qwen3ForCausalLM(config)


def token_loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy of ``rows [B, L]`` in nats."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor, width: int = 256) -> float:
    """Perplexity a token over ``rows``, in windows of ``width`` so that it compares with other records."""
    windows = rows.reshape(-1, width).long()
    losses = [token_loss(model, chunk) * len(chunk) for chunk in windows.split(32)]
    return math.exp(float(torch.stack(losses).sum()) / len(windows))


def held_out_perplexity(target: Target, files: Sequence[SourceFile], width: int = 512) -> float:
    """The same of a loaded target's model over ``files``, by transformers' own attention."""
    model = copy.deepcopy(target.model)
    model.set_attn_implementation("sdpa")
    return perplexity(model, token_rows(target.tokenizer, files, width))


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.num_steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    model: transformers.PreTrainedModel, rows: Tensor, held_out: Tensor, recipe: Recipe, out: Path
) -> list[dict[str, float]]:
    """Train in place with Muon (hidden matrices) and AdamW (the rest); returns the logged curve."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if not (p.ndim == 2 and "embed" not in name)]
    optimizers = [
        torch.optim.Muon(hidden, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.0, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed))
    compiled = torch.compile(token_loss)
    curve: list[dict[str, float]] = []
    recent: list[float] = []
    started = time.monotonic()
    for step in range(min(recipe.stop_step, recipe.num_steps)):
        start = step * recipe.sequences_per_step % (len(rows) - recipe.sequences_per_step)
        batch = rows[order[start : start + recipe.sequences_per_step]].long()
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * learning_rate_factor(step, recipe)
            optimizer.step()
            optimizer.zero_grad()
        recent.append(float(loss.detach()))
        if (step + 1) % 250 == 0:
            point = {
                "step": step + 1,
                "train_perplexity": math.exp(sum(recent) / len(recent)),
                "held_out_perplexity": perplexity(model, held_out),
                "seconds": time.monotonic() - started,
            }
            recent.clear()
            curve.append(point)
            log.info("%s", json.dumps(point))
            save_model(model, out)
    return curve


def save_model(model: transformers.PreTrainedModel, out: Path) -> None:
    """Write bf16 weights (the tied head once) and the configuration."""
    weights = {
        k: v.detach().bfloat16().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(out)


def build(out: Path, recipe: Recipe) -> None:
    """Train tokenizer and model into ``out`` and write the build log."""
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    files = corpus_files(recipe)
    tokenizer = train_tokenizer([f.text() for f in files[:: max(1, len(files) // 2_500)]], recipe.vocab_size)
    tokenizer.save_pretrained(out)
    rows = token_rows(tokenizer, files, recipe.context)
    held_out = token_rows(tokenizer, stdlib_files(held_out=True), recipe.context)
    log.info("corpus %d files, %d tokens; held out %d tokens", len(files), rows.numel(), held_out.numel())
    model = new_model(recipe, tokenizer.eos_token_id)
    curve = fit(model, rows, held_out, recipe, out)
    record = build_log(recipe, files, rows.numel(), held_out.numel(), curve)
    record["sha256"] = {p.name: sha256(p) for p in sorted(out.glob("*.safetensors"))}
    (out / "build-log.json").write_text(json.dumps(record, indent=1) + "\n")


def build_log(
    recipe: Recipe,
    files: Sequence[SourceFile],
    num_tokens: int,
    held_out_tokens: int,
    curve: list[dict[str, float]],
) -> dict[str, Any]:
    """Everything that decided the result, and how training went."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.path.read_bytes())
    return {
        "recipe": dataclasses.asdict(recipe),
        "corpus": {
            "sha256": digest.hexdigest(),
            "num_files": len(files),
            "num_tokens": num_tokens,
            "packages": {name: metadata.version(name) for name in TARGET_PACKAGES},
        },
        "held_out_tokens": held_out_tokens,
        "curve": curve,
        "versions": versions(),
    }


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
    build(arguments.out, Recipe())


if __name__ == "__main__":
    main()
