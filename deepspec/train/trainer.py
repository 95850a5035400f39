"""One optimiser step: text, target features, draft blocks, loss, update.

Features come from a :class:`deepspec.features.FeatureSource`. A step's rows may be computed in parts
(``train.accumulation``) and by several processes; anchors and the loss's normaliser are those of the whole
step, so the parts add up to the same gradient. Step k is a function of the weights, the seed and k.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import Embedding

from deepspec.data import BatchSampler
from deepspec.distributed import ALONE, World
from deepspec.errors import ConfigError
from deepspec.features import FeatureSource, OnlineFeatures, SourceContext
from deepspec.interfaces import Drafter, HeadStep
from deepspec.plugins import resolve_part
from deepspec.target import Target
from deepspec.train.anchors import move, sample_anchors
from deepspec.train.assemble import assemble, for_decoding
from deepspec.train.confidence import check_trained, is_untrained
from deepspec.train.objective import BlockObjective, Graded
from deepspec.train.optimizer import DraftOptimizer
from deepspec.train.output_weights import OutputWeights
from deepspec.train.position_weights import make_position_weights
from deepspec.train.recompute import recompute_layers
from deepspec.train.sharding import DraftModel, shard_, unshard_, whole_tensors
from deepspec.train.shares import own_parts, sum_graded, sum_gradients_, with_label
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
        world: the processes that share each step's rows; :meth:`begin` comes before the first.
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
        world: World = ALONE,
    ) -> None:
        self.parts = parts
        self.target = target
        self.objective = objective
        self.sampler = sampler
        self.config = config
        self.device = device
        self.world = world
        assert isinstance(parts.drafter, Drafter), "what has no weights to train is refused before"
        self.modules = DraftModel(parts.drafter, parts.head)
        self.drafter = parts.drafter
        if config.train.gradient_checkpointing:
            recompute_layers(self.drafter)
        self.source = source or OnlineFeatures(SourceContext.of(config, target, self.drafter))
        # Before weights are shared out: a share has no rows of its own.
        self._vocab_sizes = {target.info.vocab_size, len(self.drafter.readout().weight)}
        self._vocab_sizes |= {m.num_embeddings for m in self.modules.modules() if isinstance(m, Embedding)}
        self.optimizer = self._new_optimizer()
        precision = config.train.precision
        self._is_bfloat16 = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")

    @property
    def is_sharded(self) -> bool:
        """Whether the draft model's weights are shared out among the processes."""
        return self.config.train.parallel == "fsdp" and not self.world.is_alone

    def begin(self) -> None:
        """Once the weights are settled: every process starts from the main one's, or its share of them."""
        self.world.spread_(list(self.modules.state_dict().values()))
        if self.is_sharded:
            shard_(self.modules, self.device)
            self.optimizer = self._new_optimizer()

    def weights(self) -> dict[str, Tensor]:
        """The draft model's weights as they are saved, on the host of the main process; nothing elsewhere."""
        return whole_tensors(self.modules.state_dict(), keep=self.world.is_main)

    def moments(self) -> dict[str, Tensor]:
        """Likewise the optimiser's state."""
        return whole_tensors(self.optimizer.state_tensors(), keep=self.world.is_main)

    def decoding_parts(self, manager: pluggy.PluginManager | None = None) -> Parts:
        """The parts as the engine wants them, whole in every process."""
        if not self.is_sharded:
            return for_decoding(self.parts, self.target, manager)
        weights = whole_tensors(self.modules.state_dict(), keep=True)
        target, device = self.target, self.device
        parts = assemble(
            self.parts.strategy, target, device=device, dtype=target.dtype, seed=0, manager=manager
        )
        parts.modules().load_state_dict(weights)
        return parts

    def _new_optimizer(self) -> DraftOptimizer:
        return DraftOptimizer(
            dict(self.modules.named_parameters()),
            self.config.train,
            hidden_size=self.drafter.hidden_size,
            vocab_sizes=self._vocab_sizes,
        )

    def step(self, number: int, *, measure: bool) -> StepResult:
        """Run 0-based step ``number``; weights stay as they are when loss or gradient is not finite."""
        batch = self.sampler.batch(number)
        graded, total = self.learn(batch, number, measure=measure)
        if not self.is_sharded:  # FSDP has done it
            sum_gradients_(self.modules.parameters(), self.world)
        graded = self._sum(graded)
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
        """Add step ``number``'s gradients of this process's rows to the weights'.

        Returns:
            What was graded of them, and the sum of the weights of all rows.
        """
        self.modules.train()
        anchors = self._anchors(batch, step=number)
        total = self.objective.total_weight(anchors.valid)
        graded: Graded | None = None
        for rows, blocks in self._split(batch, anchors, self.config.train.accumulation):
            if not blocks.valid.any():
                self._learn(rows, with_label(blocks), total_weight=math.inf, measure=measure)
                continue
            part = self._learn(rows, blocks, total_weight=total, measure=measure)
            graded = part if graded is None else graded + part
        return graded, total

    @torch.no_grad()
    def expected_accepted_length(self, batches: Sequence[TokenBatch]) -> float:
        """1 + sum over k of the mean survival, over anchors of held-out rows; the same anchors every time."""
        self.modules.eval()
        if self.is_sharded:
            unshard_(self.modules, whole=True)
        graded: Graded | None = None
        for number, batch in enumerate(batches):
            for rows, blocks in self._split(batch, self._anchors(batch, step=-1 - number), 1):
                hidden, step, weights, features, anchors = self._forward(rows, blocks)
                part = self.objective.measure(hidden, step, weights, features=features, anchors=anchors)
                graded = part if graded is None else graded + part
        if self.is_sharded:
            unshard_(self.modules, whole=False)
        graded = self._sum(graded)
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
        return own_parts(batch, anchors, num_parts, self.world, in_step=self._in_step)

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
        features = self.features(batch)
        anchors = move(blocks, self.device)
        hidden, latent, confidence = self.modules(batch.to(self.device), features, anchors)
        weights = OutputWeights(self.drafter.readout(), self.parts.head.output_weight)
        return hidden, HeadStep(latent, confidence), weights, features, anchors

    def features(self, batch: TokenBatch) -> Features:
        """What the frozen target makes, or made, of a batch, on the draft model's device."""
        with _own_precision(self.target):
            found = self.source.features(batch)
        return Features(found.tapped.to(self.device), found.last_hidden.to(self.device))

    def _sum(self, graded: Graded | None) -> Graded | None:
        sizes = {"num_terms": len(self.objective.terms), "draft_length": self.parts.strategy.draft_length}
        return sum_graded(graded, self.world, **sizes)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bfloat16)

    @property
    def _in_step(self) -> bool:
        """Whether all processes do a forward pass together, since each has but a share of the weights."""
        return self.is_sharded or self.target.is_sharded
