"""One optimiser step: text, target features, draft blocks, loss, update.

Features come from a :class:`deepspec.features.FeatureSource`. A step's rows may be computed in parts
(``train.accumulation``); anchors and the loss's normaliser are those of the whole step, so the parts add up
to the same gradient. Step k is a function of the weights, the seed and k.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from deepspec.data import BatchSampler
from deepspec.errors import ConfigError
from deepspec.features import FeatureSource, OnlineFeatures, SourceContext
from deepspec.interfaces import Drafter, HeadStep
from deepspec.plugins import resolve_part
from deepspec.target import Target
from deepspec.train.anchors import move, sample_anchors, select_rows
from deepspec.train.confidence import check_trained, is_untrained
from deepspec.train.objective import BlockObjective, Graded
from deepspec.train.optimizer import DraftOptimizer
from deepspec.train.output_weights import OutputWeights
from deepspec.train.position_weights import make_position_weights
from deepspec.train.recompute import recompute_layers
from deepspec.train.terms import ObjectiveTerm
from deepspec.types import AnchorBlocks, Features, TokenBatch

if TYPE_CHECKING:
    import pluggy
    from torch import Tensor

    from deepspec.config import RunConfig, TrainConfig
    from deepspec.strategy import Parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step came to, host side.

    Attributes:
        loss: the weighted total. terms: each term before weighting.
        expected_accepted_length: None when it was not measured.
        gradient_norm: before clipping. learning_rate: as used.
        num_tokens: tokens of real text in the step's rows.
    """

    loss: float
    terms: dict[str, float]
    expected_accepted_length: float | None
    gradient_norm: float
    learning_rate: float
    num_tokens: int


def make_objective(parts: Parts, target: Target, manager: pluggy.PluginManager) -> BlockObjective:
    """The strategy's objective.

    Raises ConfigError for an unknown term, for one that the head cannot serve, and for a policy that reads
    what no term trains; PluginError for a term that two plugins register.
    """
    wanted = {name: weight for name, weight in parts.strategy.objective.terms.items() if weight > 0}
    terms = []
    for name, weight in wanted.items():
        cls: type[ObjectiveTerm] = resolve_part(manager, ObjectiveTerm.kind, name)
        if cls.reads_confidence and parts.head.confidence != "linear":
            raise ConfigError(
                f"objective term {name!r} trains a linear confidence; the head {parts.head.name!r} is set "
                f"to {parts.head.confidence!r}; use --set head.confidence=linear or "
                f"--set objective.terms.{name}=0"
            )
        terms.append((cls(), weight))
    if parts.policy.needs_confidence:
        check_trained(parts, manager, f"policy {parts.policy.name!r}")
    elif is_untrained(parts, manager):
        logger.warning(
            "no objective term trains the linear confidence of head %r, so no length policy can go by it "
            "later; train it with --set objective.terms.confidence=1",
            parts.head.name,
        )

    def target_logits(hidden: Tensor) -> Tensor:
        with _own_precision(target):
            return target.logits(hidden.to(target.device, target.dtype)).to(hidden.device)

    weights = make_position_weights(parts.strategy.objective)
    return BlockObjective(terms, weights, target_logits=target_logits)


def memory_advice(config: TrainConfig) -> str:
    """What to set when the memory does not hold a step."""
    advice = (
        f"lower --set train.anchors_per_sequence (now {config.anchors_per_sequence}) or "
        f"--set train.sequences_per_step (now {config.sequences_per_step}), or raise "
        f"--set train.accumulation (now {config.accumulation}), which changes no result"
    )
    if config.gradient_checkpointing:
        return advice
    return f"{advice}, or --set train.gradient_checkpointing=true, which changes none either"


def _own_precision(target: Target) -> torch.autocast:
    """The drafter's autocast is none of the target's business: it runs in its own float type."""
    return torch.autocast(target.device.type, enabled=False)


class Trainer:
    """A draft model being trained.

    Args:
        parts: on ``device``, weights in float32 (the master weights).
        sampler: training batches, on CPU.
        source: of the target's features; its forward in this process when None.
    """

    def __init__(
        self,
        parts: Parts,
        target: Target,
        *,
        objective: BlockObjective,
        sampler: BatchSampler,
        config: RunConfig,
        device: torch.device,
        source: FeatureSource | None = None,
    ) -> None:
        self.parts = parts
        self.target = target
        self.objective = objective
        self.sampler = sampler
        self.config = config
        self.device = device
        self.modules = parts.modules()
        assert isinstance(parts.drafter, Drafter), "what has no weights to train is refused before"
        self.drafter = parts.drafter
        if config.train.gradient_checkpointing:
            recompute_layers(self.drafter)
        self.source = source or OnlineFeatures(SourceContext.of(config, target, self.drafter))
        vocab_sizes = {target.info.vocab_size, len(self.drafter.readout().weight)}
        vocab_sizes |= {m.num_embeddings for m in self.modules.modules() if isinstance(m, torch.nn.Embedding)}
        parameters = dict(self.modules.named_parameters())
        self.optimizer = DraftOptimizer(
            parameters, config.train, hidden_size=self.drafter.hidden_size, vocab_sizes=vocab_sizes
        )
        precision = config.train.precision
        self._is_bfloat16 = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")

    def step(self, number: int, *, measure: bool) -> StepResult:
        """Run 0-based step ``number``; weights stay as they are when loss or gradient is not finite."""
        batch = self.sampler.batch(number)
        graded, total = self.learn(batch, number, measure=measure)
        norm, rate = self.optimizer.step(number)
        weights = [weight for _, weight in self.objective.terms]
        sums = [0.0] * len(weights) if graded is None else [s / total for s in graded.term_sums.tolist()]
        return StepResult(
            loss=sum(weight * value for weight, value in zip(weights, sums, strict=True)),
            terms={term.name: value for (term, _), value in zip(self.objective.terms, sums, strict=True)},
            expected_accepted_length=graded.expected_accepted_length() if graded and measure else None,
            gradient_norm=float(norm),
            learning_rate=rate,
            num_tokens=int((batch.segments >= 0).sum()),
        )

    def learn(self, batch: TokenBatch, number: int, *, measure: bool) -> tuple[Graded | None, float]:
        """Add step ``number``'s gradients to the weights'; what was graded, and the sum of its weights."""
        self.modules.train()
        anchors = self._anchors(batch, step=number)
        total = self.objective.total_weight(anchors.valid)
        graded: Graded | None = None
        for rows, blocks in self._split(batch, anchors, self.config.train.accumulation):
            part = self._learn(rows, blocks, total_weight=total, measure=measure)
            graded = part if graded is None else graded + part
        return graded, total

    @torch.no_grad()
    def expected_accepted_length(self, batches: Sequence[TokenBatch]) -> float:
        """1 + sum over k of the mean survival, over anchors of held-out rows; the same anchors every time."""
        self.modules.eval()
        graded: Graded | None = None
        for number, batch in enumerate(batches):
            blocks = self._anchors(batch, step=-1 - number)
            if len(blocks.rows):
                hidden, step, weights, features, anchors = self._forward(batch, blocks)
                part = self.objective.measure(hidden, step, weights, features=features, anchors=anchors)
                graded = part if graded is None else graded + part
        return 1.0 if graded is None else graded.expected_accepted_length()

    def _anchors(self, batch: TokenBatch, *, step: int) -> AnchorBlocks:
        return sample_anchors(
            batch,
            self.config.train.anchors_per_sequence,
            draft_length=self.parts.strategy.draft_length,
            seed=self.config.seed,
            step=step,
        )

    def _split(
        self, batch: TokenBatch, anchors: AnchorBlocks, num_parts: int
    ) -> Iterator[tuple[TokenBatch, AnchorBlocks]]:
        """The step's rows in at most ``num_parts`` parts, without those that have no anchor."""
        size = -(-len(batch.tokens) // num_parts)
        for start in range(0, len(batch.tokens), size):
            fields = (batch.tokens, batch.segments, batch.positions, batch.supervised)
            blocks = select_rows(anchors, start, start + size)
            if len(blocks.rows):
                yield TokenBatch(*(field[start : start + size] for field in fields)), blocks

    def _learn(
        self, batch: TokenBatch, blocks: AnchorBlocks, *, total_weight: float, measure: bool
    ) -> Graded:
        with self._autocast():
            hidden, step, weights, features, anchors = self._forward(batch, blocks)
            return self.objective.learn(
                hidden,
                step,
                weights,
                features=features,
                anchors=anchors,
                total_weight=total_weight,
                measure=measure,
            )

    def _forward(
        self, batch: TokenBatch, blocks: AnchorBlocks
    ) -> tuple[Tensor, HeadStep, OutputWeights, Features, AnchorBlocks]:
        drafter, head = self.drafter, self.parts.head
        features = self.features(batch)
        anchors = move(blocks, self.device)
        hidden = drafter.block(batch.to(self.device), features, anchors)
        step = head.block(anchors.previous, hidden)
        return hidden, step, OutputWeights(drafter.readout(), head.output_weight), features, anchors

    def features(self, batch: TokenBatch) -> Features:
        """What the frozen target makes, or made, of a batch, on the draft model's device."""
        with _own_precision(self.target):
            found = self.source.features(batch)
        return Features(found.tapped.to(self.device), found.last_hidden.to(self.device))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bfloat16)
