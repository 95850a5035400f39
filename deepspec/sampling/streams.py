"""Counter-based random streams: Philox4x32-10 (Salmon et al. 2011), vectorised on the host.

A uniform is a pure function of (request seed, position, index, stream, epoch), so a request's draws do
not depend on its neighbours, on admission order or on what was drafted elsewhere. The keys are known
on the host before a round starts; making the noise there keeps it equal on every device.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.outer(np.arange(10, dtype=np.uint64), np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64))

Array = NDArray[np.uint64]


class Stream(IntEnum):
    """Disjoint streams. DELTA is keyed by the drawn token's own position, the rest by (anchor, index)."""

    DRAFT = 0
    ACCEPT = 1
    RESIDUAL = 2
    DELTA = 3


def philox(key: Array, even: Array, odd: Array) -> tuple[Array, Array]:
    """Four 32-bit words (in uint64) for each 64-bit key and counter.

    Words 0 and 2 of counter and result are stacked in ``even [..., 2]``, words 1 and 3 in ``odd [..., 2]``,
    which keeps a round down to a handful of array operations; ``key`` is ``[...]``.
    """
    halves = np.stack([key & _MASK, key >> _SHIFT], axis=-1)
    for step in _WEYL:
        product = even * _MULTIPLIERS
        even = (product >> _SHIFT)[..., ::-1] ^ odd ^ ((halves + step) & _MASK)
        odd = (product & _MASK)[..., ::-1]
    return even, odd


def uniforms(
    seeds: Array, positions: Array, indices: Array, stream: Array | Stream, epoch: int = 0
) -> NDArray[np.float64]:
    """Two uniforms in [0, 1) with 53 bits for every broadcast element: shape ``[..., 2]``.

    Args:
        seeds: uint64, each request's seed.
        positions: uint64, the anchor's position (the token's own for ``Stream.DELTA``).
        indices: uint64, index inside the round (0 for ``Stream.DELTA``).
        stream: one stream, or an array of them.
        epoch: raised whenever a computed verdict was thrown away and is drawn again.
    """
    shape = np.broadcast_shapes(seeds.shape, positions.shape, indices.shape, np.shape(stream))
    even, odd = np.empty((*shape, 2), dtype=np.uint64), np.empty((*shape, 2), dtype=np.uint64)
    even[..., 0], odd[..., 0] = positions & _MASK, indices
    even[..., 1], odd[..., 1] = stream, epoch
    even, odd = philox(seeds, even, odd)
    return ((even << np.uint64(21)) ^ (odd >> np.uint64(11))) * 2.0**-53


def request_seed(engine_seed: int, request_number: int) -> int:
    """A 64-bit seed for a request that brought none; distinct requests get unrelated streams."""
    key = np.array([engine_seed % 2**64], dtype=np.uint64)
    even = np.array([[request_number & 0xFFFFFFFF, 0]], dtype=np.uint64)
    odd = np.array([[request_number >> 32, 0x5EED]], dtype=np.uint64)
    even, odd = philox(key, even, odd)
    return int(even[0, 0]) << 32 | int(odd[0, 0])
