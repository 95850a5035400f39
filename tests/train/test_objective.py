"""The objective: chunked gradients equal the plain formula's, of every term and position weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepspec.interfaces import HeadStep, Readout
from deepspec.plugins import create_plugin_manager, list_parts, resolve_part
from deepspec.strategy import Objective
from deepspec.train.objective import BlockObjective, chunk_rows
from deepspec.train.output_weights import OutputWeights
from deepspec.train.position_weights import PositionWeights, make_position_weights
from deepspec.train.terms import CrossEntropy, GradedRows, ObjectiveTerm
from deepspec.types import AnchorBlocks, Features

G, H, Z, D = 4, 6, 3, 5
MANAGER = create_plugin_manager()


@dataclass
class Slot:
    """One slot, over the whole vocabulary: q (0 outside the draft vocabulary) and p, in float64."""

    q: Tensor
    p: Tensor
    inside: Tensor
    label: int
    confidence: Tensor

    @property
    def l1(self) -> Tensor:
        return (self.q - self.p).abs().sum()

    @property
    def kl(self) -> Tensor:
        p, q = self.p[self.inside], self.q[self.inside]
        return (p * (p.log() - q.log())).sum()


def hybrid(slot: Slot) -> Tensor:
    share = math.exp(-3 * (1 - float(slot.l1.detach()) / 2))
    return share * slot.kl + (1 - share) * slot.l1 / 2


#: Each term as its paper writes it.
FORMULAS: dict[str, Callable[[Slot], Tensor]] = {
    "ce": lambda s: -s.q[s.label].log() if s.inside[s.label] else torch.zeros(()),
    "soft_ce": lambda s: -(s.p[s.inside] * s.q[s.inside].log()).sum(),
    "l1": lambda s: s.l1,
    "lk": lambda s: -torch.minimum(s.p, s.q).sum().log(),
    "lk_hybrid": hybrid,
    "confidence": lambda s: nn.functional.binary_cross_entropy_with_logits(
        s.confidence, 1 - s.l1.detach() / 2
    ),
}
TERMS = {"ce": 0.1, "l1": 0.9, "confidence": 1.0, "soft_ce": 0.3, "lk": 0.7, "lk_hybrid": 0.2}
DECAY = Objective(terms=TERMS)


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

    def objective(self, wanted: Objective = DECAY, rows: int | None = None) -> BlockObjective:
        terms = [
            (resolve_part(MANAGER, "objective", name)(), weight) for name, weight in wanted.terms.items()
        ]
        return BlockObjective(
            terms, make_position_weights(wanted), target_logits=lambda h: h @ self.head.T, rows=rows
        )

    def leaves(self) -> list[torch.Tensor]:
        found = [self.hidden, self.latent, self.confidence, self.output]
        return [*found, self.weight] if self.weight.requires_grad else found

    def slot(self, n: int, k: int) -> Slot:
        """A slot by the formulas of readout and head."""
        ids = self.readout.target_ids
        base = self.hidden[n, k] @ self.weight.T
        if self.readout.softcap is not None:
            base = self.readout.softcap * torch.tanh(base / self.readout.softcap)
        q = torch.softmax(base + self.latent[n, k] @ self.output.T, -1)
        ids = torch.arange(len(q)) if ids is None else ids
        empty = torch.zeros(len(self.head), dtype=torch.float64)
        column = int(self.anchors.columns[n]) + k
        return Slot(
            q=empty.index_add(0, ids, q),
            p=torch.softmax(self.features.last_hidden[self.anchors.rows[n], column] @ self.head.T, -1),
            inside=empty.index_fill(0, ids, 1.0).bool(),
            label=int(self.anchors.labels[n, k]),
            confidence=self.confidence[n, k],
        )

    def eager(self, wanted: Objective = DECAY) -> tuple[Tensor, Tensor]:
        """(loss, acceptance [N, G]) by the formulas, one slot at a time."""
        total, norm = torch.zeros((), dtype=torch.float64), 0.0
        acceptance = torch.zeros(self.anchors.valid.shape, dtype=torch.float64)
        for n, valid in enumerate(self.anchors.valid.tolist()):
            slots = [self.slot(n, k) for k in range(sum(valid))]
            survival = wanted.position_weights == "survival"
            weights = survival_weights(slots) if survival else decay_weights(slots, wanted.position_decay)
            norm += bool(slots) if survival else sum(weights)
            for k, (slot, w) in enumerate(zip(slots, weights, strict=True)):
                parts = [weight * FORMULAS[name](slot) for name, weight in wanted.terms.items()]
                total = total + w * torch.stack(parts).sum()
                acceptance[n, k] = 1 - slot.l1.detach() / 2
        return total / norm, acceptance


def decay_weights(slots: list[Slot], decay: float | None) -> list[float]:
    return [1.0 if decay is None else math.exp(-k / decay) for k in range(len(slots))]


def survival_weights(slots: list[Slot]) -> list[float]:
    """Algorithm 1 of D-PACE, with alpha = 1/2."""
    smoothed = [0.5 * float(slot.q[slot.label].detach()) + 0.5 for slot in slots]
    prefix = [math.prod(smoothed[: m + 1]) for m in range(len(slots))]
    return [sum(prefix[k:]) for k in range(len(slots))]


CASES = {
    "plain": {},
    "soft-capped": {"softcap": 2.0},
    "trained readout": {"trained": True},
    "reduced vocabulary": {"ids": [7, 0, 3, 9, 10], "trained": True},
}


def learned(case: Case, objective: BlockObjective, anchors: AnchorBlocks | None = None, total: float = 1.0):
    """What ``learn`` returns for the whole case."""
    return objective.learn(
        case.hidden,
        case.step,
        case.outputs,
        features=case.features,
        anchors=anchors or case.anchors,
        total_weight=total,
    )


def assert_as_the_formula(case: Case, wanted: Objective, rows: int | None) -> None:
    loss, acceptance = case.eager(wanted)
    expected = torch.autograd.grad(loss, case.leaves(), allow_unused=True)
    objective = case.objective(wanted, rows)
    total = objective.total_weight(case.anchors.valid)
    graded = learned(case, objective, total=total)
    weights = torch.tensor([*wanted.terms.values()], dtype=torch.float64)
    assert float(graded.term_sums @ weights) / total == pytest.approx(float(loss.detach()), rel=1e-12)
    for leaf, gradient in zip(case.leaves(), expected, strict=True):
        assert (leaf.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-10, atol=1e-12)
    survival = acceptance.cumprod(dim=1)
    torch.testing.assert_close(graded.survival, survival.sum(dim=0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", ["decay", "survival"])
@pytest.mark.parametrize("rows", [1, 9, 1000])
@pytest.mark.parametrize("kind", CASES)
def test_chunked_loss_and_gradients_equal_the_plain_formula(kind, rows, weights):
    assert_as_the_formula(Case(**CASES[kind]), Objective(terms=TERMS, position_weights=weights), rows)


@pytest.mark.parametrize("ids", [None, [7, 0, 3, 9, 10]], ids=["whole", "reduced"])
@pytest.mark.parametrize("name", FORMULAS)
def test_each_term_alone_is_its_formula(name, ids):
    assert_as_the_formula(Case(ids=ids), Objective(terms={name: 2.0}, position_decay=None), rows=None)


@given(
    names=st.lists(st.sampled_from([*FORMULAS]), min_size=1, unique=True),
    decay=st.sampled_from([None, 4.0]),
    weights=st.sampled_from(["decay", "survival"]),
    softcap=st.sampled_from([None, 2.0]),
    trained=st.booleans(),
    ids=st.sampled_from([None, [7, 0, 3, 9, 10]]),
    rows=st.sampled_from([None, 1, 9]),
)
def test_any_combination_of_terms_is_the_sum_of_their_formulas(
    names, decay, weights, softcap, trained, ids, rows
):
    wanted = Objective(
        terms={name: TERMS[name] for name in names}, position_decay=decay, position_weights=weights
    )
    assert_as_the_formula(Case(softcap=softcap, trained=trained, ids=ids), wanted, rows)


class Anything(ObjectiveTerm):
    """A term of somebody else's, which reads all that rows offer."""

    name = "anything"

    def loss(self, rows: GradedRows) -> Tensor:
        outside = rows.target_outside * rows.confidence
        dense = (rows.draft * rows.target).sum(dim=-1) + rows.logits.square().mean(dim=-1)
        return dense + outside + rows.distance.square() + rows.cross_entropy * rows.log_draft.amax(dim=-1)


@pytest.mark.parametrize("kind", CASES)
def test_a_term_of_somebody_elses_has_the_gradient_of_what_it_reads(kind):
    plain, chunked = Case(**CASES[kind]), Case(**CASES[kind])
    valid = plain.anchors.valid
    base = plain.hidden[valid] @ plain.weight.T
    cap, ids = plain.readout.softcap, plain.readout.target_ids
    logits = (base if cap is None else cap * torch.tanh(base / cap)) + plain.latent[valid] @ plain.output.T
    columns = plain.anchors.columns[:, None] + torch.arange(G)
    states = plain.features.last_hidden[plain.anchors.rows[:, None], columns][valid]
    p = torch.softmax(states @ plain.head.T, -1)
    inside = p if ids is None else p[:, ids]
    labels = torch.zeros(len(p), dtype=torch.int64)
    rows = GradedRows(logits, labels, plain.confidence[valid], (inside, 1 - inside.sum(-1)))
    Anything().loss(rows).sum().backward()
    weights = make_position_weights(Objective(position_decay=None))
    learned(chunked, BlockObjective([(Anything(), 1.0)], weights, target_logits=lambda h: h @ plain.head.T))
    for one, other in zip(plain.leaves(), chunked.leaves(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-12)


def test_weights_that_are_no_leaves_pass_their_gradients_on():
    plain, scaled = Case(trained=True), Case(trained=True)
    learned(plain, plain.objective())
    weight, output = (torch.nn.Parameter(w.detach() / 2) for w in (scaled.weight, scaled.output))
    outputs = OutputWeights(Readout(2 * weight, trained=True), 2 * output)
    scaled.objective().learn(
        scaled.hidden,
        scaled.step,
        outputs,
        features=scaled.features,
        anchors=scaled.anchors,
        total_weight=1.0,
    )
    torch.testing.assert_close(weight.grad, 2 * plain.weight.grad)
    torch.testing.assert_close(output.grad, 2 * plain.output.grad)


def test_under_autocast_products_are_bfloat16_and_gradients_near_those_without():
    plain, cast = Case(trained=True, softcap=2.0), Case(trained=True, softcap=2.0)
    learned(plain, plain.objective())
    with torch.autocast("cpu", torch.bfloat16):
        learned(cast, cast.objective())
    for one, other in zip(plain.leaves(), cast.leaves(), strict=True):
        assert other.grad.dtype == torch.float64
        error = (other.grad - one.grad).norm() / one.grad.norm()
        assert 1e-4 < error < 0.1  # products of 8 bits


def test_a_chunk_holds_the_rows_that_products_need_and_far_fewer_than_a_step():
    cpu = torch.device("cpu")
    sizes = [chunk_rows(vocab, cpu) for vocab in (256, 4096, 32_000, 151_936)]
    assert sizes == sorted(sizes, reverse=True)
    # Of 512 blocks of 7: logits of draft and target and one more of their size, against about nine of all.
    assert 3 * sizes[-1] < 9 * 512 * 7 / 8


def test_every_registered_term_has_a_formula_here():
    terms = {p.name for p in list_parts(MANAGER) if str(p.source).startswith("deepspec.train.terms:")}
    assert terms == set(FORMULAS) == set(TERMS)


@pytest.mark.parametrize("name", ["lk", "lk_hybrid", "soft_ce", "l1"])
def test_terms_stay_finite_where_draft_and_target_do_not_overlap(name):
    logits = torch.tensor([[0.0, 400.0, 0.0], [-400.0, 0.0, 0.0]], requires_grad=True)
    for inside in (torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])):
        target = inside.expand(2, 3), 1 - inside.sum(dim=1).expand(2)
        rows = GradedRows(logits, torch.zeros(2, dtype=torch.int64), None, target)
        loss = resolve_part(MANAGER, "objective", name)().loss(rows)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
    assert name != "lk" or gradient[0, 0] == pytest.approx(-1.0)


def test_no_gradient_reaches_a_frozen_readout():
    case = Case()
    learned(case, case.objective())
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


@pytest.mark.parametrize("weights", ["decay", "survival"])
def test_parts_of_a_step_add_up_to_the_whole_step(weights):
    whole, parts = Case(blocks=6), Case(blocks=6)
    objective = whole.objective(Objective(terms=TERMS, position_weights=weights))
    total = objective.total_weight(whole.anchors.valid)
    learned(whole, objective, total=total)
    for piece in (slice(0, 2), slice(2, 6)):
        a = parts.anchors
        objective.learn(
            parts.hidden[piece],
            HeadStep(parts.latent[piece], parts.confidence[piece]),
            parts.outputs,
            features=parts.features,
            anchors=AnchorBlocks(
                a.rows[piece], a.columns[piece], a.labels[piece], a.previous[piece], a.valid[piece]
            ),
            total_weight=total,
        )
    for one, other in zip(whole.leaves(), parts.leaves(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def weights_of(chosen: PositionWeights, log_q: list[list[float]], valid: Tensor) -> list[float]:
    """The weights of slots whose true token, 0 of 2, has these log-probabilities."""
    picked = torch.tensor(log_q, dtype=torch.float64)[valid]
    logits = torch.stack([picked, torch.log1p(-picked.exp())], dim=-1)
    return chosen.of(
        GradedRows(logits, torch.zeros(len(picked), dtype=torch.int64), None, None), valid
    ).tolist()


def test_position_weights_decay_or_stay_equal():
    valid = torch.tensor([[True, True, True], [True, False, False]])
    for decay, first in ((4.0, [1.0, math.exp(-0.25), math.exp(-0.5)]), (None, [1.0, 1.0, 1.0])):
        weights = make_position_weights(Objective(position_decay=decay))
        assert weights_of(weights, [[-1.0] * 3] * 2, valid) == pytest.approx([*first, 1.0])
        assert weights.total(valid) == pytest.approx(sum(first) + 1)


def test_survival_weights_follow_the_drafter_and_are_normalised_by_blocks():
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    weights = make_position_weights(Objective(position_weights="survival"))
    log_q = [[math.log(0.5), math.log(0.2)], [math.log(0.8), 0.0], [0.0, 0.0]]
    assert weights_of(weights, log_q, valid) == pytest.approx([0.75 + 0.75 * 0.6, 0.75 * 0.6, 0.9])
    assert weights.total(valid) == 2


def test_a_label_outside_the_draft_vocabulary_counts_as_refused():
    valid = torch.tensor([[True, True]])
    rows = GradedRows(torch.zeros(2, 4), torch.tensor([-1, 1]), None, None)
    weights = make_position_weights(Objective(position_weights="survival"))
    assert weights.of(rows, valid).tolist() == pytest.approx([0.5 + 0.5 * 0.625, 0.5 * 0.625])
    assert CrossEntropy().loss(rows).tolist() == pytest.approx([0.0, math.log(4)])


@pytest.mark.parametrize("weights", ["decay", "survival"])
def test_cross_entropy_alone_never_asks_the_target(weights):
    case = Case()

    def refuse(hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the target was asked")

    chosen = make_position_weights(Objective(position_weights=weights))
    objective = BlockObjective([(CrossEntropy(), 1.0)], chosen, target_logits=refuse)
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
    graded = learned(case, case.objective(), empty)
    assert graded.term_sums.tolist() == [0] * len(TERMS)
    assert case.hidden.grad is None
