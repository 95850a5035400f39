"""The draft sampler's kernels draw and record what the core's sampler does, interpreted or on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.kernels import reference
from deepspec.kernels.triton_draft import draw_step
from deepspec.sampling import SamplingParams, batch_sampling, categorical, sampler
from tests.exact_statistics.compositions import THOROUGH
from tests.kernels.rounds import BLOCK, DEVICE, MARGIN

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
#: float32 sums of some dozen exponentials.
CLOSE = 2e-6


def _case(seed: int, vocab: int, dtype: torch.dtype, missing: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * torch.randn(8, vocab, generator=generator)
    gone = torch.rand(8, vocab, generator=generator) < missing
    gone[:, vocab // 2] = False
    rows = rows.masked_fill(gone, float("-inf")).to(DEVICE, dtype)
    params = [SamplingParams(temperature=t) for t in (1.0, 0.0, 0.6, 1.7)] * 2
    uniforms = torch.rand(8, 2, generator=generator, dtype=torch.float64).to(DEVICE)
    return rows, batch_sampling(params, vocab, DEVICE), uniforms


@pytest.mark.parametrize(
    ("dtype", "vocab", "missing"),
    [
        (torch.float32, 45, 0.0),
        (torch.bfloat16, 33, 0.0),
        (torch.float16, 16, 0.0),
        (torch.float32, 33, 0.5),
        (torch.bfloat16, 1, 0.0),
    ],
)
@settings(max_examples=5 if THOROUGH else 2)
@given(seed=st.integers(0, 10**6))
def test_tokens_and_what_is_recorded_are_the_samplers(
    dtype: torch.dtype, vocab: int, missing: float, seed: int
) -> None:
    rows, sampling, uniforms = _case(seed, vocab, dtype, missing)
    stored, found = draw_step(rows, None, sampling, uniforms, block=BLOCK)
    assert stored is rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(categorical, "BLOCK", BLOCK)
        shifts = [(a, b) for a in (0, -MARGIN, MARGIN) for b in (0, -MARGIN, MARGIN)]
        wanted = [
            sampler.draw_draft(rows.double(), sampling, (uniforms + uniforms.new_tensor(shift)).clamp(0, 1))
            for shift in shifts
        ]
    possible = torch.stack([one.tokens for one in wanted])
    assert bool((possible == found.tokens).any(dim=0).all())
    torch.testing.assert_close(found.log_sum_exp.double(), wanted[0].log_sum_exp, atol=CLOSE, rtol=CLOSE)
    values = torch.where(sampling.temperature == 0, 1.0, sampling.temperature)[:, None]
    log_q = (rows.double() / values).gather(1, found.tokens[:, None])[:, 0] - wanted[0].log_sum_exp
    log_q = torch.where(sampling.temperature == 0, 0.0, log_q)
    torch.testing.assert_close(found.log_q.double(), log_q, atol=4 * CLOSE, rtol=CLOSE)


def test_a_row_alone_is_what_it_is_in_a_batch_bit_for_bit() -> None:
    rows, sampling, uniforms = _case(3, 45, torch.bfloat16)
    _, whole = draw_step(rows, None, sampling, uniforms, block=BLOCK)
    for r in range(8):
        one = slice(r, r + 1)
        alone = replace(sampling, temperature=sampling.temperature[one])
        _, found = draw_step(rows[one], None, alone, uniforms[one], block=BLOCK)
        assert all(torch.equal(a, b[one]) for a, b in zip(_parts(found), _parts(whole), strict=True))


def _parts(drawn: sampler.Drawn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drawn.tokens, drawn.log_sum_exp, drawn.log_q


def test_no_rows_draw_nothing() -> None:
    rows, sampling, uniforms = _case(0, 20, torch.float32)
    none = replace(sampling, temperature=sampling.temperature[:0])
    assert draw_step(rows[:0], None, none, uniforms[:0])[1].tokens.shape == (0,)


# The interpreter's products of bfloat16 are wrong, so that a GPU alone can tell of those.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_heads_correction_is_in_the_stored_row_that_is_drawn_from(dtype: torch.dtype) -> None:
    rows, sampling, uniforms = _case(5, 45, dtype)
    generator = torch.Generator().manual_seed(1)
    latent, weight = (torch.randn(n, 12, generator=generator).to(DEVICE, dtype) for n in (8, 45))
    stored, found = draw_step(rows, (latent, weight), sampling, uniforms, block=BLOCK)
    exact = rows.double() + latent.double() @ weight.double().T
    # One rounding of the sum to the stored type, over float32 products of twelve.
    torch.testing.assert_close(stored.double(), exact, atol=1e-5, rtol=float(torch.finfo(dtype).eps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(categorical, "BLOCK", BLOCK)
        again, drawn = reference.draw_step(stored, None, sampling, uniforms)
    assert again is stored
    assert torch.equal(found.tokens, drawn.tokens)
    torch.testing.assert_close(found.log_q, drawn.log_q.float(), atol=4 * CLOSE, rtol=CLOSE)
