"""The device's random streams are the host's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepspec.engine.noise import round_noise
from deepspec.kernels.triton_philox import pairs_of
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
    assert np.array_equal(pairs_of(*columns).cpu().numpy(), np.array(expected))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_rounds_noise_is_the_same_wherever_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(backend: str) -> list[Tensor]:
        monkeypatch.setenv("DEEPSPEC_KERNELS", backend)
        reads = frozenset({"accept", "residual", "delta"})
        draft, rest = round_noise([7, 2**64 - 1, 3], [5, 0, 2**33], 2, reads, DEVICE)
        return [draft, rest.accept, rest.residual, rest.delta]

    for host, device in zip(noise("reference"), noise("triton"), strict=True):
        assert host.dtype == torch.float64
        assert torch.equal(host, device)


def _signed(value: int) -> int:
    """The int64 of the same bits."""
    return value - 2**64 if value >= 2**63 else int(value)
