"""The objective: chunked gradients equal the plain formula's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deepspec.interfaces import HeadStep, Readout
from deepspec.train.objective import BlockObjective, OutputWeights
from deepspec.train.terms import ConfidenceEntropy, CrossEntropy, L1Distance, SoftCrossEntropy
from deepspec.types import AnchorBlocks, Features

G, H, Z, D = 4, 6, 3, 5
TERMS = [(CrossEntropy(), 0.1), (L1Distance(), 0.9), (ConfidenceEntropy(), 1.0), (SoftCrossEntropy(), 0.3)]


class Case:
    """Random blocks, weights and a target, float64."""

    def __init__(
        self,
        *,
        vocab: int = 11,
        ids: list[int] | None = None,
        softcap: float | None = None,
        trained: bool = False,
        blocks: int = 5,
    ) -> None:
        generator = torch.Generator().manual_seed(vocab + blocks)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        rows = len(ids) if ids is not None else vocab
        self.hidden = random(blocks, G, H).requires_grad_()
        self.latent = random(blocks, G, Z).requires_grad_()
        self.confidence = random(blocks, G).requires_grad_()
        self.output = nn.Parameter(random(rows, Z))
        self.weight = random(rows, H).requires_grad_(trained)
        self.head = random(vocab, D)
        valid = torch.rand((blocks, G), generator=generator) < 0.8
        valid[:, 0] = True
        valid = valid.cummin(dim=1).values
        labels = torch.randint(0, vocab, (blocks, G), generator=generator) * valid
        self.anchors = AnchorBlocks(
            torch.arange(blocks) % 2, torch.arange(blocks), labels, torch.zeros_like(labels), valid
        )
        self.features = Features(random(2, blocks + G, 0), random(2, blocks + G, D))
        target_ids = None if ids is None else torch.tensor(ids)
        self.readout = Readout(self.weight, softcap, target_ids, trained)

    @property
    def outputs(self) -> OutputWeights:
        return OutputWeights(self.readout, self.output)

    @property
    def step(self) -> HeadStep:
        return HeadStep(self.latent, self.confidence)

    def objective(self, rows: int | None = None, decay: float | None = 4.0, terms=None) -> BlockObjective:
        return BlockObjective(terms or TERMS, decay, target_logits=lambda h: h @ self.head.T, rows=rows)

    def leaves(self) -> list[torch.Tensor]:
        found = [self.hidden, self.latent, self.confidence, self.output]
        return [*found, self.weight] if self.weight.requires_grad else found

    def eager(self, decay: float | None = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, acceptance [N, G]) by the formula, one slot at a time."""
        total, norm = torch.zeros((), dtype=torch.float64), 0.0
        acceptance = torch.zeros(self.anchors.valid.shape, dtype=torch.float64)
        ids = self.readout.target_ids
        for n, k in self.anchors.valid.nonzero().tolist():
            w = 1.0 if decay is None else math.exp(-k / decay)
            base = self.hidden[n, k] @ self.weight.T
            if self.readout.softcap is not None:
                base = self.readout.softcap * torch.tanh(base / self.readout.softcap)
            log_q = torch.log_softmax(base + self.latent[n, k] @ self.output.T, -1)
            q = torch.zeros(len(self.head), dtype=torch.float64)
            q = q.index_add(0, torch.arange(len(q)) if ids is None else ids, log_q.exp())
            column = int(self.anchors.columns[n]) + k
            p = torch.softmax(self.features.last_hidden[self.anchors.rows[n], column] @ self.head.T, -1)
            l1 = (q - p).abs().sum()
            label = int(self.anchors.labels[n, k])
            found = [label] if ids is None else [i for i, t in enumerate(ids.tolist()) if t == label]
            ce = -log_q[found[0]] if found else torch.zeros((), dtype=torch.float64)
            bce = nn.functional.binary_cross_entropy_with_logits(self.confidence[n, k], 1 - l1.detach() / 2)
            soft_ce = -(p if ids is None else p[ids]) @ log_q
            total = total + w * (0.1 * ce + 0.9 * l1 + bce + 0.3 * soft_ce)
            acceptance[n, k] = 1 - l1.detach() / 2
            norm += w
        return total / norm, acceptance


CASES = {
    "plain": {},
    "soft-capped": {"softcap": 2.0},
    "trained readout": {"trained": True},
    "reduced vocabulary": {"ids": [7, 0, 3, 9, 10], "trained": True},
}


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("kind", CASES)
def test_chunked_loss_and_gradients_equal_the_plain_formula(kind, rows):
    case = Case(**CASES[kind])
    loss, acceptance = case.eager()
    expected = torch.autograd.grad(loss, case.leaves())
    objective = case.objective(rows)
    total = objective.total_weight(case.anchors.valid)
    graded = objective.learn(
        case.hidden, case.step, case.outputs, features=case.features, anchors=case.anchors, total_weight=total
    )
    assert float(
        graded.term_sums @ torch.tensor([weight for _, weight in TERMS], dtype=torch.float64)
    ) / total == pytest.approx(float(loss.detach()), rel=1e-12)
    for leaf, gradient in zip(case.leaves(), expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-10, atol=1e-12)
    survival = acceptance.cumprod(dim=1)
    torch.testing.assert_close(graded.survival, survival.sum(dim=0), rtol=1e-10, atol=1e-12)


def test_no_gradient_reaches_a_frozen_readout():
    case = Case()
    case.objective().learn(
        case.hidden, case.step, case.outputs, features=case.features, anchors=case.anchors, total_weight=1.0
    )
    assert case.weight.grad is None


def test_expected_accepted_length_averages_each_position_over_the_blocks_that_reach_it():
    case = Case(blocks=9)
    _, acceptance = case.eager()
    graded = case.objective().measure(
        case.hidden, case.step, case.outputs, features=case.features, anchors=case.anchors
    )
    survival, valid = acceptance.cumprod(dim=1), case.anchors.valid
    expected = 1 + sum(float(survival[valid[:, k], k].mean()) for k in range(G) if valid[:, k].any())
    assert graded.expected_accepted_length() == pytest.approx(expected, rel=1e-12)
    assert (graded + graded).expected_accepted_length() == pytest.approx(expected, rel=1e-12)


def test_parts_of_a_step_add_up_to_the_whole_step():
    whole, parts = Case(blocks=6), Case(blocks=6)
    objective = whole.objective()
    total = objective.total_weight(whole.anchors.valid)
    objective.learn(
        whole.hidden,
        whole.step,
        whole.outputs,
        features=whole.features,
        anchors=whole.anchors,
        total_weight=total,
    )
    for piece in (slice(0, 2), slice(2, 6)):
        a = parts.anchors
        anchors = AnchorBlocks(
            a.rows[piece], a.columns[piece], a.labels[piece], a.previous[piece], a.valid[piece]
        )
        step = HeadStep(parts.latent[piece], parts.confidence[piece])
        parts.objective().learn(
            parts.hidden[piece],
            step,
            parts.outputs,
            features=parts.features,
            anchors=anchors,
            total_weight=total,
        )
    for one, other in zip(whole.leaves(), parts.leaves(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_position_weights_decay_or_stay_equal():
    case = Case()
    assert case.objective(decay=4.0).position_weights(3) == pytest.approx(
        [1.0, math.exp(-0.25), math.exp(-0.5)]
    )
    assert case.objective(decay=None).position_weights(3) == [1.0, 1.0, 1.0]


def test_cross_entropy_alone_never_asks_the_target():
    case = Case()

    def refuse(hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the target was asked")

    objective = BlockObjective([(CrossEntropy(), 1.0)], 4.0, target_logits=refuse)
    graded = objective.learn(
        case.hidden,
        case.step,
        case.outputs,
        features=case.features,
        anchors=case.anchors,
        total_weight=1.0,
        measure=False,
    )
    assert graded.expected_accepted_length() == 1.0
    assert case.hidden.grad is not None


def test_blocks_without_labels_leave_no_gradient():
    case = Case()
    a = case.anchors
    empty = AnchorBlocks(a.rows, a.columns, a.labels, a.previous, torch.zeros_like(a.valid))
    graded = case.objective().learn(
        case.hidden, case.step, case.outputs, features=case.features, anchors=empty, total_weight=1.0
    )
    assert graded.term_sums.tolist() == [0] * len(TERMS)
    assert case.hidden.grad is None
