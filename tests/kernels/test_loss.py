"""Row statistics and gradient of the loss: the reference is autograd's in float64, Triton's the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import loss_backend_for, loss_reference, triton_loss
from deepspec.kernels.loss_reference import RowGradients, TargetLogits
from tests.kernels.rounds import DEVICE

FIELDS = ("log_normaliser", "log_label", "distance", "cross_entropy", "slope", "mass")
#: Sums of float32 products: 1e-6 of a cross-entropy of up to 30, whatever type the logits are read from.
ATOL = 3e-5
#: A gradient is stored in the logits' type: bfloat16 keeps 8 bits, which the interpreter truncates to.
STORED = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (2**-7, 2e-6)}


class Rows:
    """Draft and target logits of M rows, what the loss's derivative is, and what else reaches the logits."""

    def __init__(self, seed: int, *, num: int, vocab: int, lacking: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            return drawn.to(dtype).double()

        self.logits = random(num, vocab, scale=3.0)
        self.labels = torch.randint(-1, vocab, (num,), generator=generator)
        whole = random(num, vocab + lacking, scale=3.0)
        self.target = TargetLogits(whole[:, :vocab].contiguous(), whole.logsumexp(dim=-1))
        self.by = RowGradients(random(num), random(num), random(num))
        self.dense = random(num, vocab)
        self.tanh = random(num, vocab).tanh().to(dtype).double()

    def in_type(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, TargetLogits, RowGradients]:
        """Copies for a kernel, row values in float32."""
        target = TargetLogits(
            self.target.logits.to(DEVICE, dtype), self.target.log_normaliser.to(DEVICE, torch.float32)
        )
        by = RowGradients(*(x.to(DEVICE, torch.float32) for x in vars(self.by).values()))
        return self.logits.clone().to(DEVICE, dtype), self.labels.to(DEVICE), target, by


def by_autograd(rows: Rows, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three numbers that losses depend on, as one would write them."""
    log_q = logits.log_softmax(dim=-1)
    p = (rows.target.logits - rows.target.log_normaliser[:, None]).exp()
    picked = log_q.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    log_label = torch.where(labels >= 0, picked, float("-inf"))
    return log_label, (log_q.exp() - p).abs().sum(dim=-1), -(p * log_q).sum(dim=-1)


def expected_gradient(rows: Rows) -> Tensor:
    logits = rows.logits.clone().requires_grad_()
    found = by_autograd(rows, logits, rows.labels)
    weights = vars(rows.by).values()
    loss = torch.stack(
        [torch.where(v.isfinite(), v * w, 0).sum() for v, w in zip(found, weights, strict=True)]
    )
    return torch.autograd.grad(loss.sum(), logits)[0] + rows.dense


SIZES = {"num": st.integers(1, 6), "vocab": st.integers(2, 40), "lacking": st.sampled_from([0, 5])}


@given(seed=st.integers(0, 2**20), **SIZES)
def test_the_reference_is_what_autograd_finds_in_float64(
    seed: int, num: int, vocab: int, lacking: int
) -> None:
    rows = Rows(seed, num=num, vocab=vocab, lacking=lacking, dtype=torch.float64)
    found = loss_reference.statistics(rows.logits, rows.labels, rows.target)
    for name, value in zip(FIELDS[1:4], by_autograd(rows, rows.logits, rows.labels), strict=True):
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=1e-12)
    expected, logits, tanh = expected_gradient(rows), rows.logits.clone(), rows.tanh.clone()
    loss_reference.gradient_(
        logits, rows.labels, rows.target, found=found, by=rows.by, dense=rows.dense, tanh=tanh
    )
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(tanh, expected * (1 - rows.tanh**2), rtol=1e-11, atol=1e-12)


def test_tiles_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(1, num=7, vocab=12, lacking=0, dtype=torch.float64)

    def run() -> list[Tensor]:
        logits = rows.logits.clone()
        found = loss_reference.statistics(logits, rows.labels, rows.target)
        loss_reference.gradient_(logits, rows.labels, rows.target, found=found, by=rows.by)
        return [*vars(found).values(), loss_reference.log_normaliser(rows.logits), logits]

    whole = run()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setitem(loss_reference._TILE_ELEMENTS, "cpu", 24)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(
    ("vocab", "lacking", "parts"),
    [(17, 0, "all"), (40, 5, "all"), (33, 0, "target"), (9, 0, "label"), (4100, 0, "all")],
)
def test_triton_equals_the_reference(dtype: torch.dtype, vocab: int, lacking: int, parts: str) -> None:
    rows = Rows(vocab, num=4, vocab=vocab, lacking=lacking, dtype=dtype)
    logits, labels, target, by = rows.in_type(dtype)
    exact, known = (rows.target, target) if parts != "label" else (None, None)
    expected = loss_reference.statistics(rows.logits, rows.labels, exact)
    found = triton_loss.statistics(logits, labels, known)
    for name in FIELDS:
        value = getattr(found, name).double().cpu()
        torch.testing.assert_close(value, getattr(expected, name), rtol=0, atol=ATOL)
    extra = {"dense": rows.dense, "tanh": rows.tanh.clone()} if parts == "all" else {}
    here = {"dense": rows.dense.to(DEVICE, dtype), "tanh": rows.tanh.to(DEVICE, dtype)} if extra else {}
    loss_reference.gradient_(rows.logits, rows.labels, exact, found=expected, by=rows.by, **extra)
    triton_loss.gradient_(logits, labels, known, found=found, by=by, **here)
    rtol, atol = STORED[dtype]
    torch.testing.assert_close(logits.double().cpu(), rows.logits, rtol=rtol, atol=atol)
    if extra:
        torch.testing.assert_close(here["tanh"].double().cpu(), extra["tanh"], rtol=rtol, atol=atol)
    normaliser = triton_loss.log_normaliser(target.logits).double().cpu()
    torch.testing.assert_close(normaliser, rows.target.logits.logsumexp(-1), rtol=0, atol=ATOL)


def test_where_draft_and_target_agree_the_distance_has_no_gradient() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    none, one = torch.full((3,), -1, device=DEVICE), torch.ones(3, device=DEVICE)
    target = TargetLogits(logits.clone(), triton_loss.log_normaliser(logits))
    found = triton_loss.statistics(logits, none, target)
    assert found.distance.tolist() == [0.0] * 3
    triton_loss.gradient_(logits, none, target, found=found, by=RowGradients(0 * one, one, 0 * one))
    assert logits.tolist() == [[0.0] * 9] * 3


def test_the_dispatch_says_which_kernels_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("DEEPSPEC_KERNELS", "")
    assert loss_backend_for(cpu).name == "reference"
    monkeypatch.setenv("DEEPSPEC_KERNELS", "triton")
    with pytest.raises(ConfigError, match="float64"):
        loss_backend_for(cpu, torch.float64)
