"""The device's random streams are the host's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.kernels.triton_philox import uniforms as on_device
from deepspec.sampling import Stream, uniforms
from tests.kernels.rounds import DEVICE

WORD = st.integers(0, 2**32 - 1)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), WORD, WORD, st.sampled_from(Stream), WORD), min_size=1))
def test_uniforms_are_the_hosts_bit_for_bit(keys: list[tuple[int, int, int, Stream, int]]) -> None:
    keys = keys[:8]
    expected = [
        uniforms(np.uint64([seed]), np.uint64([position]), np.uint64([index]), stream, epoch)[0]
        for seed, position, index, stream, epoch in keys
    ]
    columns = [torch.tensor([_signed(key[i]) for key in keys], device=DEVICE) for i in range(5)]
    assert np.array_equal(on_device(*columns).cpu().numpy(), np.array(expected))


def _signed(value: int) -> int:
    """The int64 of the same bits."""
    return value - 2**64 if value >= 2**63 else int(value)
