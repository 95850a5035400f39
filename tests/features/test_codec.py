"""Stored rows: floats are casts, integers are off by half a step at most, and sizes are as stated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.features.codec import GROUP, decode, encode, row_bytes

WIDTHS = st.integers(1, 3 * GROUP + 1)
BITS = (4, 8, 16, 32)
#: A scale is bfloat16, which is off by 2^-9 at most: the largest of 127 (or 7) steps may be cut by so much.
SCALE_ERROR = 2**-9


def rows(width: int, seed: int, count: int = 5) -> torch.Tensor:
    """Of widely different sizes, with outliers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 2, width, generator=generator) ** 3
    return values * 10.0 ** torch.arange(-2, count - 2)[:, None, None]


@given(width=WIDTHS, seed=st.integers(0, 99))
@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), (16, torch.bfloat16)])
def test_floats_are_casts(bits: int, dtype: torch.dtype, width: int, seed: int) -> None:
    values = rows(width, seed)
    codes, scales = encode(values, bits)
    assert scales is None
    assert decode(codes, scales, width, torch.float32).equal(values.to(dtype).float())


@given(width=WIDTHS, seed=st.integers(0, 99))
@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 7)])
def test_integers_are_off_by_half_a_step_of_their_row_or_group(
    bits: int, steps: int, width: int, seed: int
) -> None:
    values = rows(width, seed)
    found = decode(*encode(values, bits), width, torch.float32)
    size = width if bits == 8 else GROUP
    for start in range(0, width, size):
        some = slice(start, start + size)
        largest = values[..., some].abs().amax(dim=-1, keepdim=True)
        allowed = largest * (0.5 / steps + SCALE_ERROR) * (1 + 1e-5)
        assert bool(((found - values)[..., some].abs() <= allowed).all())


@given(width=WIDTHS)
@pytest.mark.parametrize("bits", BITS)
def test_a_row_takes_the_bytes_that_are_stated(bits: int, width: int) -> None:
    codes, scales = encode(rows(width, 0, count=1)[0, :1], bits)
    stored = [part.nbytes for part in (codes, scales) if part is not None]
    assert sum(stored) == row_bytes(bits, width)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(0, 2, 70), (3, 0, 70)])
def test_no_rows_and_no_layers_are_kept_as_such(bits: int, shape: tuple[int, ...]) -> None:
    assert decode(*encode(torch.ones(shape), bits), 70, torch.float32).shape == shape


@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros(bits: int) -> None:
    assert not decode(*encode(torch.zeros(2, 130), bits), 130, torch.float32).any()


@pytest.mark.parametrize(("bits", "most"), [(8, 0.501), (4, 0.28)])
def test_a_row_of_a_real_width_takes_a_half_and_a_quarter_of_bfloat16(bits: int, most: float) -> None:
    assert row_bytes(bits, 2560) / (2560 * 2) <= most
