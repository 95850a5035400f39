"""Trains a small Qwen3-architecture model on rows of tokens: the demo target, and larger ones like it.

Muon for hidden matrices and AdamW for the rest, bfloat16 autocast over float32 weights, and a rate that is
known for every step beforehand. Order and weights are functions of (seed, step), and all that a training
needs to go on is one file, so an interrupted one goes on bit for bit (on a CPU, uncompiled: as tested).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepspec.errors import TrainingError
from deepspec.optimizers import load_state_tensors, muon_and_adamw, state_tensors, update
from deepspec.paths import written_whole

log = logging.getLogger(__name__)
_TIED = "lm_head.weight"  # the embedding, which is stored once


@dataclass(frozen=True)
class Recipe:
    """What a target is made from and how."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    sequences_per_step: int
    num_steps: int  # of the learning-rate schedule
    stop_step: int  # training ends here
    warmup_steps: int
    learning_rate: float  # the peak
    stdlib_repeats: int  # times that the standard library is in the text
    package_byte_limit: int  # of each package's sources
    seed: int

    @property
    def last_step(self) -> int:
        """How many steps there are."""
        return min(self.stop_step, self.num_steps)


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
    device = next(model.parameters()).device
    losses = [token_loss(model, chunk.to(device)) * len(chunk) for chunk in windows.split(32)]
    return math.exp(float(torch.stack(losses).sum()) / len(windows))


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.num_steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


class Pretraining:
    """A model in training: weights, optimisers, and how far it is.

    Args:
        end_id: the token that ends a text.
        compiled: run the loss through torch.compile.

    Attributes:
        step: steps done. curve: a point for every ``log_every`` steps of :func:`fit`.
    """

    def __init__(self, recipe: Recipe, end_id: int, *, device: torch.device, compiled: bool) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.model = new_model(recipe, end_id).to(device)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.losses: list[Tensor] = []  # since the last point, 0-d and on the device: none is waited for
        self._named = dict(self.model.named_parameters())
        hidden = {name: p for name, p in self._named.items() if p.ndim == 2 and "embed" not in name}
        rest = [p for name, p in self._named.items() if name not in hidden]
        self._optimizers = muon_and_adamw(
            list(hidden.values()), rest, learning_rate=recipe.learning_rate, weight_decay=0.0
        )
        self._loss = torch.compile(token_loss) if compiled else token_loss
        self._epoch, self._order = -1, torch.zeros(0, dtype=torch.int64)

    @property
    def is_done(self) -> bool:
        return self.step >= self.recipe.last_step

    def advance(self, rows: Tensor) -> None:
        """One step on rows ``[num_rows, context]``: the next of an order that each epoch shuffles anew."""
        started = time.monotonic()
        batch = rows[self._next(len(rows))].to(self.device).long()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self._loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self._named.values(), 1.0)
        update(self._optimizers, self.recipe.learning_rate * learning_rate_factor(self.step, self.recipe))
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self.losses.append(loss.detach())
        self.step += 1
        self.seconds += time.monotonic() - started

    def _next(self, num_rows: int) -> Tensor:
        count = self.recipe.sequences_per_step
        epoch, place = divmod(self.step, num_rows // count)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.recipe.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(num_rows, generator=generator)
        return self._order[place * count : (place + 1) * count]

    def note(self, held_out: Tensor) -> dict[str, float]:
        """Add a point to the curve and return it; raises TrainingError when the loss is no number."""
        started = time.monotonic()
        loss = float(torch.stack(self.losses).double().mean())
        if not math.isfinite(loss):
            raise TrainingError(
                f"the mean loss of the {len(self.losses)} steps up to {self.step} is {loss}; lower "
                f"learning_rate (now {self.recipe.learning_rate:g}) in a new folder"
            )
        self.losses.clear()
        found = {"train_perplexity": math.exp(loss), "held_out_perplexity": perplexity(self.model, held_out)}
        self.seconds += time.monotonic() - started
        self.curve.append({"step": self.step, **found, "seconds": self.seconds})
        return self.curve[-1]

    def save(self, path: Path) -> None:
        """Write all that is needed to go on, whole: weights, moments, and the rest as JSON in the header."""
        tensors = {f"weight/{k}": v for k, v in self.model.state_dict().items() if k != _TIED}
        moments = state_tensors(self._optimizers, self._named)
        tensors |= {f"optimizer/{k}": v for k, v in moments.items()}
        tensors |= {f"loss/{i:06}": loss for i, loss in enumerate(self.losses)}
        on_host = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        state = {"step": self.step, "seconds": self.seconds, "curve": self.curve}
        with written_whole(path) as partial:
            save_file(on_host, partial, metadata={"format": "pt", "state": json.dumps(state)})

    def load(self, path: Path) -> None:
        """The inverse of :meth:`save`, for the same recipe."""
        groups: dict[str, dict[str, Tensor]] = {"weight": {}, "optimizer": {}, "loss": {}}
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            for key in file.keys():  # noqa: SIM118  # it is no mapping
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        weights = groups["weight"]
        self.model.load_state_dict({**weights, _TIED: weights["model.embed_tokens.weight"]})
        load_state_tensors(self._optimizers, self._named, groups["optimizer"])
        self.losses = [loss.to(self.device) for _, loss in sorted(groups["loss"].items())]
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def fit(
    training: Pretraining,
    rows: Tensor,
    held_out: Tensor,
    *,
    log_every: int,
    on_point: Callable[[], None],
    is_over: Callable[[], bool],
) -> None:
    """Train until the recipe's end, or after the step at which ``is_over``.

    Args:
        rows: int ``[num_rows, context]``. held_out: the same, of text that is not trained on.
        on_point: called after each point of the curve, one every ``log_every`` steps and one at the end.
    """
    last = training.recipe.last_step
    while not training.is_done:
        training.advance(rows)
        if training.step % log_every == 0 or training.is_done:
            log.info("of %d steps: %s", last, json.dumps(training.note(held_out)))
            on_point()
        if is_over():
            return


def save_model(model: transformers.PreTrainedModel, out: Path) -> None:
    """Write bf16 weights (the tied head once) and the configuration."""
    weights = {k: v.detach().bfloat16().cpu().contiguous() for k, v in model.state_dict().items()}
    del weights[_TIED]
    with written_whole(out / "model.safetensors") as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(out)
