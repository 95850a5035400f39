"""Nothing between two target forwards makes the host wait: parts and core run on fake tensors, which have no
values, so that ``.item()``, ``nonzero`` or a tensor as a condition raises.

The whole engine on real tensors is held to one copy a round by ``tests/engine/test_engine.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from deepspec.engine.draft import Drafted, run_draft
from deepspec.interfaces import HeadStep, RoundUniforms, SequentialHead, TargetInfo
from deepspec.plugins import create_plugin_manager, register
from deepspec.sampling import SamplingParams, batch_sampling, draw_draft
from deepspec.strategy import Parts, Strategy
from deepspec.types import Anchors, Draft, Extension, Features, Load, Sampling, Span, TargetRows
from tests.exact import made_parts
from tests.exact.made_parts import Echo
from tests.exact_statistics.compositions import (
    CALIBRATORS,
    HEADS,
    POLICIES,
    STRATEGIES,
    VERIFIERS,
    build,
    tiny_target,
)

NUM_REQUESTS, DRAFT_LENGTH, VOCAB = 3, 2, 12
CPU = torch.device("cpu")
WAITING = (DataDependentOutputException, DynamicOutputShapeException)
PARAMS = [SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(top_k=3, top_p=0.9, min_p=0.1)]


@pytest.fixture(scope="module")
def real() -> TargetInfo:
    return tiny_target(VOCAB, torch.float32).info


@pytest.fixture
def info(real: TargetInfo) -> Iterator[TargetInfo]:
    """A target whose weights are fake, inside the mode that makes every new tensor fake."""
    mode = FakeTensorMode()
    weights = {name: mode.from_tensor(getattr(real, name)) for name in ("embedding", "lm_head")}
    with mode, torch.no_grad():
        yield replace(real, **weights)


def _sampling() -> Sampling:
    return _valueless(batch_sampling(PARAMS, VOCAB, CPU))


def _valueless(sampling: Sampling) -> Sampling:
    """Fake tensors of known constants keep their values; adding zero to them loses these."""
    fields = ("temperature", "top_k", "top_p", "min_p")
    return replace(sampling, **{name: getattr(sampling, name) + torch.zeros(()).long() for name in fields})


def _ids(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape)


def _drafted(parts: Parts) -> Drafted:
    """A round after some committed text, as the loop runs it."""
    drafter = parts.drafter
    drafter.allocate(NUM_REQUESTS, 32, torch.float32, CPU)
    rows = 4 * NUM_REQUESTS
    size = drafter.context.target.hidden_size
    drafter.extend(
        Extension(
            slots=torch.arange(NUM_REQUESTS),
            spans=tuple(Span(slot, 0, 4) for slot in range(NUM_REQUESTS)),
            rows=torch.arange(NUM_REQUESTS).repeat_interleave(4),
            positions=torch.arange(4).repeat(NUM_REQUESTS),
            tokens=_ids(rows),
            next_tokens=_ids(rows),
            features=Features(torch.randn(rows, len(drafter.target_layers) * size), torch.randn(rows, size)),
        )
    )
    spans = tuple(Span(slot, 4, 1) for slot in range(NUM_REQUESTS))
    positions = torch.full((NUM_REQUESTS,), 4)
    anchors = Anchors(torch.arange(NUM_REQUESTS), _ids(NUM_REQUESTS), positions, spans, DRAFT_LENGTH)
    return run_draft(parts, anchors, _sampling(), torch.rand(NUM_REQUESTS, DRAFT_LENGTH, 2))


def _build(info: TargetInfo, name: str = "dspark", **parts: object) -> Parts:
    return build(info, name, DRAFT_LENGTH, torch.float32, **parts)


@pytest.mark.parametrize(
    ("name", "drafter"),
    [
        *((name, {}) for name in STRATEGIES),
        ("eagle3", {"num_layers": 2, "draft_vocab_size": 5}),
        ("mtp", {"modules": "each"}),
    ],
)
def test_drafting_waits_for_nothing(info: TargetInfo, name: str, drafter: dict[str, object]) -> None:
    draft = _drafted(_build(info, name, drafter=drafter)).draft
    assert draft.tokens.shape == (NUM_REQUESTS, DRAFT_LENGTH)
    assert draft.logits is not None
    assert draft.logits.shape == (NUM_REQUESTS, DRAFT_LENGTH, VOCAB)


def test_proposing_waits_for_nothing(info: TargetInfo) -> None:
    manager = create_plugin_manager()
    register(manager, made_parts._Plugin((Echo,)), name="made")
    parts = Strategy(name="made", draft_length=DRAFT_LENGTH, drafter="echo").build(info, manager=manager)
    drafted = _drafted(parts)
    assert drafted.draft.logits is None
    assert drafted.draft.tokens.shape == (NUM_REQUESTS, DRAFT_LENGTH)
    assert drafted.lengths.shape == (NUM_REQUESTS,)


@pytest.mark.parametrize("confidence", ["linear", "row_max"])
@pytest.mark.parametrize("head", HEADS)
def test_heads_wait_for_nothing(info: TargetInfo, head: str, confidence: str) -> None:
    parts = _build(info, head={"type": head, "confidence": confidence})
    drafted = _drafted(parts)
    assert drafted.confidence is not None
    assert drafted.confidence.shape == (NUM_REQUESTS, DRAFT_LENGTH)
    parts.head.block(_ids(5, DRAFT_LENGTH), torch.randn(5, DRAFT_LENGTH, parts.drafter.hidden_size))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_calibrators_wait_for_nothing(info: TargetInfo, calibrator: str) -> None:
    confidence = torch.randn(NUM_REQUESTS, DRAFT_LENGTH)
    conditional = _build(info, calibrator=calibrator).calibrator.conditional(confidence)
    assert conditional.shape == confidence.shape


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_wait_for_nothing(info: TargetInfo, policy: str) -> None:
    survival = torch.rand(NUM_REQUESTS, DRAFT_LENGTH).cumprod(dim=1)
    drafted = torch.full((NUM_REQUESTS,), DRAFT_LENGTH)
    curve = 100 / (1 + torch.arange(1, 20, dtype=torch.float64))
    past = {"past_survival": (0.8, 0.6), "past_verified": (0.9, 0.6), "past_accepted": (0.7, 0.3)}
    load = Load(NUM_REQUESTS, 5, curve, **past, earlier_survival=torch.rand(2, 2).cumprod(dim=1))
    assert _build(info, policy=policy).policy.lengths(survival, drafted, load).shape == (NUM_REQUESTS,)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_verifiers_wait_for_nothing(info: TargetInfo, verifier: str, one_hot: bool) -> None:
    shape = (NUM_REQUESTS, DRAFT_LENGTH)
    logits = None if one_hot else torch.randn(*shape, VOCAB)
    draft = Draft(_ids(*shape), logits, torch.zeros(shape), torch.zeros(shape))
    width = 1 + DRAFT_LENGTH
    rows = TargetRows(
        torch.randn(NUM_REQUESTS * width, VOCAB), torch.arange(NUM_REQUESTS) * width, _sampling()
    )
    uniforms = RoundUniforms(
        torch.rand(shape), torch.rand(NUM_REQUESTS, 2), torch.rand(NUM_REQUESTS, width, 2)
    )
    verdict = _build(info, verifier=verifier).verifier.verify(
        rows, draft, torch.full((NUM_REQUESTS,), DRAFT_LENGTH), uniforms
    )
    assert verdict.accepted.shape == verdict.bonus.shape == (NUM_REQUESTS,)


def test_the_sampler_waits_for_nothing(info: TargetInfo) -> None:
    drawn = draw_draft(torch.randn(NUM_REQUESTS, VOCAB), _sampling(), torch.rand(NUM_REQUESTS, 2))
    assert drawn.tokens.shape == (NUM_REQUESTS,)


class _Waiting(SequentialHead[None]):
    """Hands every call on to another head, but looks at a value in between."""

    name = "waiting"

    def __init__(self, inner: SequentialHead[None], how: str) -> None:
        super().__init__(inner.config, inner.context)
        self.inner, self.how = inner, how

    output_weight = property(lambda self: self.inner.output_weight)
    confidence = property(lambda self: self.inner.confidence)

    def begin(self, hidden: Tensor) -> None:
        return self.inner.begin(hidden)

    def step(self, previous: Tensor, hidden: Tensor, state: None) -> tuple[HeadStep, None]:
        if self.how == "item":
            previous.max().item()
        elif self.how == "nonzero":
            previous.nonzero()
        elif (previous > 3).any():
            pass
        return self.inner.step(previous, hidden, state)

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        return self.inner.block(previous, hidden)


@pytest.mark.parametrize("how", ["item", "nonzero", "condition"])
def test_a_head_that_looks_at_a_value_is_caught(info: TargetInfo, how: str) -> None:
    parts = _build(info)
    waiting = replace(parts, head=_Waiting(parts.head, how))
    with pytest.raises(WAITING):
        _drafted(waiting)
