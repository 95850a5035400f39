"""The training objective: head and loss in chunks of slots, gradients computed chunk by chunk.

Hidden states, latents and confidences are detached; every chunk computes its logits, grades them and
propagates to these leaves, and one backward pass then runs through head and drafter. So no ``[N*G, V]``
tensor lives when the vocabulary is large, at the arithmetic cost of the plain formula, whose gradients
these equal. Losses are sum(w * loss) over a whole optimiser step, divided by a normaliser known beforehand;
a chunk holds whole blocks, on which w may depend (:mod:`deepspec.train.position_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from deepspec.interfaces import HeadStep
from deepspec.kernels import LossBackend, loss_backend_for
from deepspec.kernels.loss_reference import TargetLogits
from deepspec.train.fused_rows import FusedRows
from deepspec.train.output_weights import OutputProduct, OutputWeights
from deepspec.train.position_weights import PositionWeights
from deepspec.train.terms import ObjectiveTerm, at_least_float32
from deepspec.types import AnchorBlocks, Features

#: Elements of one chunk's logits, by device type.
_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}
#: Matrix products of 64 rows take 1.4 times as long a row as those of 512 on a CPU, of 256 rows 1.05 times.
_MIN_CHUNK_ROWS = 256


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """How many slots are graded at once, from the size of the draft vocabulary."""
    return max(_MIN_CHUNK_ROWS, _CHUNK_ELEMENTS.get(device.type, 2**24) // vocab_size)


@dataclass(frozen=True)
class Graded:
    """Sums over the blocks that were graded; sums of several batches add.

    Attributes:
        term_sums: ``[terms]``, sum of w * loss of each term.
        survival: ``[G]``, sum over blocks of prod_{i<=k} (1 - TV_i); zeros when not measured.
        blocks: ``[G]``, how many blocks have a label at k.
    """

    term_sums: Tensor
    survival: Tensor
    blocks: Tensor

    def __add__(self, other: Graded) -> Graded:
        return Graded(
            self.term_sums + other.term_sums, self.survival + other.survival, self.blocks + other.blocks
        )

    def expected_accepted_length(self) -> float:
        """1 + sum over k of the mean survival (bonus included); each k averages the blocks that reach it."""
        return 1.0 + float((self.survival / self.blocks.clamp(min=1)).sum())


@dataclass(frozen=True)
class _Slots:
    """The M slots of n training blocks that have a label, ``valid [n, G]``, flattened in its order."""

    hidden: Tensor
    latent: Tensor | None
    confidence: Tensor | None
    labels: Tensor
    target_hidden: Tensor
    valid: Tensor

    def chunks(self, num_blocks: int) -> Iterator[_Slots]:
        """The slots of so many blocks at a time, without their graph; the confidence becomes a leaf."""
        blocks = self.valid.split(num_blocks)
        counts = torch.stack([valid.sum() for valid in blocks]).tolist()
        for valid, stop, count in zip(blocks, accumulate(counts), counts, strict=True):
            some = slice(stop - count, stop)
            if count:
                yield _Slots(
                    hidden=self.hidden[some].detach(),
                    latent=None if self.latent is None else self.latent[some].detach(),
                    confidence=None
                    if self.confidence is None
                    else self.confidence[some].detach().requires_grad_(),
                    labels=self.labels[some],
                    target_hidden=self.target_hidden[some],
                    valid=valid,
                )


class BlockObjective:
    """Weighted terms over training blocks of one draft model.

    Args:
        terms: each term with its weight.
        position_weights: what each slot counts.
        target_logits: the target's LM head, ``[M, D]`` to ``[M, V]``.
        rows: slots in a chunk, rounded to whole blocks; None to choose by vocabulary and device.
    """

    def __init__(
        self,
        terms: Sequence[tuple[ObjectiveTerm, float]],
        position_weights: PositionWeights,
        *,
        target_logits: Callable[[Tensor], Tensor],
        rows: int | None = None,
    ) -> None:
        self.terms = tuple(terms)
        self.position_weights = position_weights
        self.target_logits = target_logits
        self.rows = rows

    @property
    def reads_target(self) -> bool:
        """Whether some term needs the target's distribution, so that measuring costs nothing more."""
        return any(term.reads_target for term, _ in self.terms)

    def total_weight(self, valid: Tensor) -> float:
        """The normaliser over all blocks ``valid [N, G]`` of an optimiser step, known beforehand."""
        return self.position_weights.total(valid)

    def learn(
        self,
        hidden: Tensor,
        step: HeadStep,
        weights: OutputWeights,
        *,
        features: Features,
        anchors: AnchorBlocks,
        total_weight: float,
        measure: bool = True,
    ) -> Graded:
        """Add the loss's gradient to each parameter behind ``hidden [N, G, H]``, ``step`` and ``weights``."""
        slots, kept = self._slots(hidden, step, weights, features, anchors)
        product = OutputProduct(weights)
        scales = torch.tensor(
            [weight / total_weight for _, weight in self.terms],
            dtype=torch.promote_types(hidden.dtype, torch.float32),
            device=hidden.device,
        )
        gradients: list[list[Tensor]] = [[], [], []]
        results = []
        for chunk in self._chunks(slots, weights):
            rows, sums, acceptance = self._grade_chunk(chunk, product, measure)
            torch.autograd.backward([sums @ scales])
            results.append((sums.detach(), acceptance))
            changed = rows.gradient_()
            found = (None, None) if changed is None else product.backward(changed, chunk.hidden, chunk.latent)
            by_confidence = None if chunk.confidence is None else chunk.confidence.grad
            for collected, part in zip(gradients, (*found, by_confidence), strict=True):
                if part is not None:
                    collected.append(part)
        sources = (slots.hidden, slots.latent, slots.confidence)
        joined = [(x, torch.cat(parts)) for x, parts in zip(sources, gradients, strict=True) if parts]
        _backward([*joined, *product.collected()])
        return self._sum(results, kept, anchors.valid)

    @torch.no_grad()
    def measure(
        self,
        hidden: Tensor,
        step: HeadStep,
        weights: OutputWeights,
        *,
        features: Features,
        anchors: AnchorBlocks,
    ) -> Graded:
        """The same sums without gradients."""
        slots, kept = self._slots(hidden, step, weights, features, anchors)
        product = OutputProduct(weights)
        results = [self._grade_chunk(chunk, product, True)[1:] for chunk in self._chunks(slots, weights)]
        return self._sum(results, kept, anchors.valid)

    def _slots(
        self,
        hidden: Tensor,
        step: HeadStep,
        weights: OutputWeights,
        features: Features,
        anchors: AnchorBlocks,
    ) -> tuple[_Slots, Tensor]:
        """The slots that have a label, and their indices in ``[N*G]``."""
        length = anchors.valid.shape[1]
        kept = anchors.valid.flatten().nonzero()[:, 0]
        blocks, offsets = kept // length, kept % length
        labels = anchors.labels.flatten()[kept]
        ids = weights.readout.target_ids
        return _Slots(
            hidden=hidden.flatten(0, 1)[kept],
            latent=None if step.latent is None else step.latent.flatten(0, 1)[kept],
            confidence=None if step.confidence is None else step.confidence.flatten()[kept],
            labels=labels if ids is None else _draft_rows(labels, ids),
            # The target's state at an anchor's column + k scores the label of position k (0-based).
            target_hidden=features.last_hidden[anchors.rows[blocks], anchors.columns[blocks] + offsets],
            valid=anchors.valid,
        ), kept

    def _chunks(self, slots: _Slots, weights: OutputWeights) -> Iterator[_Slots]:
        size = self.rows or chunk_rows(len(weights.readout.weight), slots.hidden.device)
        return slots.chunks(max(1, size // slots.valid.shape[1]))

    def _grade_chunk(
        self, slots: _Slots, product: OutputProduct, measure: bool
    ) -> tuple[FusedRows, Tensor, Tensor]:
        """The rows, sums ``[terms]`` of w * loss, and acceptance ``[m]`` (zeros when nothing asks for it)."""
        chunk = product.logits(slots.hidden, slots.latent)
        backend = loss_backend_for(chunk.logits.device, chunk.logits.dtype)
        target = None
        if measure or self.reads_target:
            target = self._target(slots.target_hidden, product.target_ids, backend)
        rows = FusedRows(
            chunk,
            slots.labels,
            None if slots.confidence is None else at_least_float32(slots.confidence),
            target,
            is_reduced=product.target_ids is not None,
            backend=backend,
        )
        counts = self.position_weights.of(rows, slots.valid)
        sums = torch.stack([(term.loss(rows) * counts).sum() for term, _ in self.terms])
        with torch.no_grad():
            acceptance = rows.acceptance if measure else torch.zeros_like(counts)
        return rows, sums, acceptance

    @torch.no_grad()
    def _target(self, hidden: Tensor, target_ids: Tensor | None, backend: LossBackend) -> TargetLogits:
        logits = self.target_logits(hidden)
        normaliser = backend.log_normaliser(logits)
        return TargetLogits(logits if target_ids is None else logits[:, target_ids], normaliser)

    def _sum(self, results: list[tuple[Tensor, Tensor]], kept: Tensor, valid: Tensor) -> Graded:
        dtype = results[0][0].dtype if results else torch.float32
        sums = torch.zeros(len(self.terms), dtype=dtype, device=valid.device)
        acceptance = torch.zeros(valid.numel(), dtype=dtype, device=valid.device)
        for chunk_sums, _ in results:
            sums = sums + chunk_sums
        if results:
            acceptance[kept] = torch.cat([chunk for _, chunk in results]).to(dtype)
        survival = acceptance.view(valid.shape).cumprod(dim=1)
        return Graded(sums, survival.sum(dim=0), valid.sum(dim=0))


def _backward(pairs: Sequence[tuple[Tensor | None, Tensor]]) -> None:
    """One pass through everything behind the first of each pair, whose gradient is the second."""
    outputs, gradients = [], []
    for output, gradient in pairs:
        if output is not None and output.requires_grad:
            outputs.append(output)
            gradients.append(gradient)
    if outputs:
        torch.autograd.backward(outputs, gradients)


def _draft_rows(labels: Tensor, target_ids: Tensor) -> Tensor:
    """Rows of the draft vocabulary that hold ``labels [M]``, -1 where none does."""
    order = target_ids.argsort()
    places = torch.searchsorted(target_ids[order], labels).clamp(max=len(target_ids) - 1)
    rows = order[places]
    return torch.where(target_ids[rows] == labels, rows, -1)
