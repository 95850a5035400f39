"""A round's uniforms, all made at once from each request's own streams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from deepspec.interfaces import RoundUniforms
from deepspec.kernels import backend_for
from deepspec.sampling.streams import Array, Stream


def round_noise(
    seeds: Sequence[int], anchors: Sequence[int], num_draft: int, reads: frozenset[str], device: torch.device
) -> tuple[Tensor, RoundUniforms]:
    """Uniforms of R requests.

    Args:
        seeds: each request's seed. anchors: each anchor's absolute position.
        num_draft: G of this round. reads: streams that the verifier reads.
        device: where they are wanted.

    Returns:
        Draft noise ``[R, G, 2]`` and the verifier's.
    """
    offsets, indices, streams, sizes = _columns(num_draft, reads)
    positions = np.asarray(anchors, dtype=np.uint64)[:, None] + offsets
    keys = np.asarray(seeds, dtype=np.uint64)[:, None]
    noise = backend_for(device).uniforms(keys, positions, indices, streams, device)
    draft, accept, residual, delta = torch.split(noise, sizes, dim=1)
    return draft, RoundUniforms(accept=accept[..., 0], residual=residual.flatten(1), delta=delta)


@cache
def _columns(num_draft: int, reads: frozenset[str]) -> tuple[Array, Array, Array, list[int]]:
    """Position offset, index and stream of each draw of a round, and how many belong to each stream."""
    steps = range(num_draft)
    groups = [
        [(0, k, Stream.DRAFT) for k in steps],
        [(0, k, Stream.ACCEPT) for k in steps] if "accept" in reads else [],
        [(0, 0, Stream.RESIDUAL)] if "residual" in reads else [],
        [(k + 1, 0, Stream.DELTA) for k in range(num_draft + 1)] if "delta" in reads else [],
    ]
    offsets, indices, streams = np.array(list(chain(*groups)), dtype=np.uint64).T
    return offsets, indices, streams, [len(group) for group in groups]
