"""A training step of DSpark or Eagle 3 over made-up text and features, with our loss or the plain one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import Qwen3Config, Qwen3ForCausalLM

from deepspec.config import RunConfig
from deepspec.interfaces import HeadStep
from deepspec.nn import DecoderLayer
from deepspec.plugins import create_plugin_manager
from deepspec.strategy import Strategy
from deepspec.target import make_target
from deepspec.train.assemble import assemble
from deepspec.train.objective import BlockObjective, Graded
from deepspec.train.output_weights import OutputWeights
from deepspec.train.trainer import Trainer, make_objective
from deepspec.types import AnchorBlocks, Features, TokenBatch

SEED, G, HEAD_DIM, TAPPED = 0, 7, 64, 3
TERMS = {"ce": 0.1, "l1": 0.9}


@dataclass(frozen=True)
class Case:
    """One step.

    Attributes:
        vocab: V. hidden: D and H. layers: of the drafter. rows, length: of the text. anchors: of all rows.
        loss: ``ours``, or ``eager``. recomputed, compiled: of the draft layers.
    """

    strategy: str = "dspark"
    vocab: int = 2048
    hidden: int = 192
    layers: int = 2
    rows: int = 4
    length: int = 512
    anchors: int = 128
    loss: str = "ours"
    recomputed: bool = False
    compiled: bool = False

    @property
    def eager_gib(self) -> float:
        """What the plain loss holds at its peak, about: ten tensors of all logits in float32."""
        return 10 * 4 * self.anchors * G * self.vocab / 2**30


class MadeText:
    """Rows of one document each, another draw of random tokens at each step; a sampler."""

    def __init__(self, case: Case) -> None:
        self.shape, self.vocab = (case.rows, case.length), case.vocab

    def batch(self, number: int) -> TokenBatch:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(self.vocab - 1, self.shape, generator=generator)
        positions = torch.arange(self.shape[1]).expand(self.shape)
        supervised = torch.ones(self.shape, dtype=torch.bool)
        return TokenBatch(tokens, torch.zeros_like(tokens), positions, supervised)


class MadeFeatures:
    """The same random features at each step, so that a step is the draft model's own; a feature source."""

    def __init__(self, case: Case, num_layers: int, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device).manual_seed(SEED)
        sizes = (num_layers * case.hidden, case.hidden)
        kind = {"generator": generator, "device": device, "dtype": dtype}
        self._made = Features(*(torch.randn(case.rows, case.length, size, **kind) for size in sizes))

    def features(self, batch: TokenBatch) -> Features:
        return self._made


class EagerObjective:
    """The formula as one writes it: all logits of draft and target at once, gradients by autograd."""

    def __init__(self, ours: BlockObjective) -> None:
        self._ours, self.terms, self.reads_target = ours, ours.terms, True
        self.total_weight = ours.total_weight

    def learn(
        self,
        hidden: Tensor,
        step: HeadStep,
        weights: OutputWeights,
        *,
        features: Features,
        anchors: AnchorBlocks,
        total_weight: float,
        measure: bool,
    ) -> Graded:
        valid = anchors.valid
        columns = anchors.columns[:, None] + torch.arange(G, device=valid.device)
        rows = anchors.rows[:, None].expand_as(columns)[valid]
        with torch.no_grad():
            states = features.last_hidden[rows, columns[valid]]
            p = self._ours.target_logits(states).float().softmax(-1)
        logits = linear(hidden[valid], weights.readout.weight) + linear(step.latent[valid], weights.latent)
        log_q = logits.float().log_softmax(-1)
        cross_entropy = -log_q.gather(1, anchors.labels[valid][:, None])[:, 0]
        distance = (log_q.exp() - p).abs().sum(-1)
        decay = torch.exp(-torch.arange(G, device=valid.device) / 4.0).expand_as(valid)[valid]
        sums = torch.stack([(cross_entropy * decay).sum(), (distance * decay).sum()])
        (sums @ sums.new_tensor(list(TERMS.values())) / total_weight).backward()
        accepted = torch.zeros(valid.shape, device=valid.device)
        accepted[valid] = (1 - distance.detach() / 2).to(accepted.dtype)
        return Graded(sums.detach(), accepted.cumprod(dim=1).sum(dim=0), valid.sum(dim=0))


def make_trainer(case: Case, device: torch.device) -> Trainer:
    """A trainer of the case's draft model; the target has an embedding and an LM head, and is never run."""
    heads = max(2, case.hidden // HEAD_DIM // 2 * 2)
    shape = Qwen3Config(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=8 * case.hidden // 3,
        num_hidden_layers=TAPPED + 3,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=case.length,
    )
    torch.manual_seed(SEED)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    target = make_target(Qwen3ForCausalLM(shape).to(device, dtype).eval())
    target = replace(target, info=replace(target.info, mask_token_id=case.vocab - 1))
    tapped = {} if case.strategy == "eagle3" else {"num_target_layers": TAPPED}
    chosen = Strategy.named(case.strategy).replace(
        draft_length=G,
        drafter={"num_layers": case.layers, **tapped},
        head={"type": "markov", "rank": 64, "confidence": "none"},
        objective={"terms": TERMS, "position_weights": "decay", "position_decay": 4.0},
    )
    sizes = {
        "anchors_per_sequence": max(1, case.anchors // case.rows),
        "gradient_checkpointing": case.recomputed,
    }
    config = RunConfig.model_validate({"strategy": chosen, "train": sizes, "device": str(device)})
    parts = assemble(chosen, target, device=device, dtype=torch.float32, seed=SEED)
    ours = make_objective(parts, target, create_plugin_manager())
    trainer = Trainer(
        parts,
        target,
        objective=ours if case.loss == "ours" else EagerObjective(ours),
        sampler=MadeText(case),
        config=config,
        device=device,
        source=MadeFeatures(case, len(parts.drafter.target_layers), device, dtype),
    )
    if case.compiled:
        for layer in layers_of(trainer):
            layer.compile()
    return trainer


def layers_of(trainer: Trainer) -> Iterable[DecoderLayer]:
    """The draft model's own."""
    return (module for module in trainer.drafter.modules() if isinstance(module, DecoderLayer))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of step 0."""
    trainer.learn(trainer.sampler.batch(0), 0, measure=True)
    named = trainer.modules.named_parameters()
    return {name: weight.grad.float() for name, weight in named if weight.grad is not None}


def gradient_error(case: Case, other: Case, device: torch.device) -> float:
    """The largest difference of any gradient of the two, as a share of its norm."""
    one, two = (gradients(make_trainer(each, device)) for each in (case, other))
    errors = [float((one[name] - two[name]).norm() / one[name].norm()) for name in one]
    return max(errors) if one.keys() == two.keys() else math.inf
