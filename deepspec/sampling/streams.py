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
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

Array = NDArray[np.uint64]


class Stream(IntEnum):
    """Disjoint streams. DELTA is keyed by the drawn token's own position, the rest by (anchor, index)."""

    DRAFT = 0
    ACCEPT = 1
    RESIDUAL = 2
    DELTA = 3


def philox(key: Array, counter: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    """Four 32-bit words (in uint64) for each 64-bit key and four-word counter; arguments broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> _SHIFT
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


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
    streams = np.asarray(stream, dtype=np.uint64)
    words = philox(*_broadcast(seeds, positions, indices, streams, np.uint64(epoch)))
    high = (words[0] << np.uint64(21)) ^ (words[1] >> np.uint64(11))
    low = (words[2] << np.uint64(21)) ^ (words[3] >> np.uint64(11))
    return np.stack([high, low], axis=-1).astype(np.float64) * 2.0**-53


def _broadcast(
    seeds: Array, positions: Array, indices: Array, streams: Array, epoch: np.uint64
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    seeds, positions, indices, streams = np.broadcast_arrays(seeds, positions, indices, streams)
    return seeds, (positions & _MASK, indices, streams, np.full_like(positions, epoch))


def request_seed(engine_seed: int, request_number: int) -> int:
    """A 64-bit seed for a request that brought none; distinct requests get unrelated streams."""
    key, number, zero, mark = np.array(
        [[engine_seed % 2**64], [request_number], [0], [0x5EED]], dtype=np.uint64
    )
    words = philox(key, (number & _MASK, number >> _SHIFT, zero, mark))
    return int(words[0][0]) << 32 | int(words[1][0])
