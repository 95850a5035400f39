"""The counter-based streams of ``deepspec.sampling.streams`` on the device, equal bit for bit.

A host takes half a millisecond for a round of 128 requests, and the device waits for it.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.sampling.streams import Array

_BLOCK = 128


@triton.jit
def uniform_pair(seed, position, index, stream, epoch):
    """Two uniforms in [0, 1) with 53 bits, float64; of the seed 64 bits count, of the others the lower 32."""
    words = tl.philox(
        seed, position.to(tl.uint32), index.to(tl.uint32), stream.to(tl.uint32), epoch.to(tl.uint32)
    )
    first = (words[0].to(tl.uint64) << 21) ^ (words[1].to(tl.uint64) >> 11)
    second = (words[2].to(tl.uint64) << 21) ^ (words[3].to(tl.uint64) >> 11)
    unit: tl.constexpr = 1.1102230246251565e-16  # 2**-53
    return first.to(tl.float64) * unit, second.to(tl.float64) * unit


@triton.jit
def draw_pairs(seeds, positions, indices, streams, epochs, pairs, count, block: tl.constexpr):
    """``count`` pairs of uniforms, one after the other."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = place < count
    first, second = uniform_pair(
        tl.load(seeds + place, mask=mask, other=0),
        tl.load(positions + place, mask=mask, other=0),
        tl.load(indices + place, mask=mask, other=0),
        tl.load(streams + place, mask=mask, other=0),
        tl.load(epochs + place, mask=mask, other=0),
    )
    tl.store(pairs + 2 * place, first, mask=mask)
    tl.store(pairs + 2 * place + 1, second, mask=mask)


def uniforms(seeds: Array, positions: Array, indices: Array, stream: Array, device: torch.device) -> Tensor:
    """``reference.uniforms``, made on ``device``: float64 ``[..., 2]``."""

    def there(key: Array) -> Tensor:
        return torch.from_numpy(key.view(np.int64)).to(device, non_blocking=True)

    epoch = torch.zeros((), dtype=torch.int64, device=device)
    return pairs_of(there(seeds), there(positions), there(indices), there(stream), epoch)


def pairs_of(seeds: Tensor, positions: Tensor, indices: Tensor, streams: Tensor, epochs: Tensor) -> Tensor:
    """Two uniforms for every broadcast element: float64 ``[..., 2]``; see ``streams.uniforms``.

    All are int64 tensors of one device; a seed is read as the 64 bits it has.
    """
    keys = [key.contiguous() for key in torch.broadcast_tensors(seeds, positions, indices, streams, epochs)]
    pairs = torch.empty((*keys[0].shape, 2), dtype=torch.float64, device=seeds.device)
    count = keys[0].numel()
    if count:
        with torch.accelerator.device_index(seeds.device.index):
            draw_pairs[(triton.cdiv(count, _BLOCK),)](*keys, pairs, count, block=_BLOCK)
    return pairs
