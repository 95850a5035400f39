"""The random streams are Philox4x32-10, reproducible and disjoint."""

from __future__ import annotations

import numpy as np

from deepspec.sampling import Stream, request_seed, uniforms
from deepspec.sampling.streams import philox


def _words(key: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    even = np.array([counter[0::2]], dtype=np.uint64)
    odd = np.array([counter[1::2]], dtype=np.uint64)
    even, odd = philox(np.array([key], dtype=np.uint64), even, odd)
    return int(even[0, 0]), int(odd[0, 0]), int(even[0, 1]), int(odd[0, 1])


def test_known_answers_of_the_published_generator() -> None:
    assert _words(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert _words(2**64 - 1, (ones, ones, ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_uniforms_are_a_function_of_their_keys_alone() -> None:
    seeds = np.array([7, 2**64 - 1], dtype=np.uint64)[:, None]
    positions = np.array([[3, 4, 5]], dtype=np.uint64)
    indices = np.zeros((1, 3), dtype=np.uint64)
    both = uniforms(seeds, positions, indices, Stream.ACCEPT)
    alone = uniforms(seeds[1:], positions[:, 2:], indices[:, 2:], Stream.ACCEPT)
    assert both.shape == (2, 3, 2)
    np.testing.assert_array_equal(both[1:, 2:], alone)


def test_streams_indices_epochs_and_seeds_give_different_draws() -> None:
    at = (np.uint64(9), np.uint64(2), np.uint64(1))
    assert len(Stream.__members__) == len(Stream)  # two names of one number would be one stream
    draws = [uniforms(*at, stream, epoch)[0] for stream in Stream for epoch in (0, 1)]
    draws += [
        uniforms(np.uint64(10), *at[1:], Stream.DRAFT)[0],
        uniforms(np.uint64(9 + 2**32), *at[1:], Stream.DRAFT)[0],
        uniforms(at[0], at[1], np.uint64(3), Stream.DRAFT)[0],
    ]
    assert len({float(d) for d in draws}) == len(draws)
    assert len({request_seed(s, n) for s in range(20) for n in range(20)}) == 400


def test_uniforms_look_uniform() -> None:
    drawn = uniforms(np.uint64(1), np.arange(20_000, dtype=np.uint64), np.uint64(0), Stream.DRAFT).ravel()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=50, range=(0, 1))[0]
    expected = len(drawn) / 50
    # 49 degrees of freedom: a value over 95 has a chance of 1e-4, and the seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 95
