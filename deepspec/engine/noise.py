"""A round's uniforms, all made at once on the host from each request's own streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepspec.interfaces import RoundUniforms
from deepspec.sampling.streams import Stream, uniforms


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
    steps = range(num_draft)
    columns = [(0, k, Stream.DRAFT) for k in steps]
    if "accept" in reads:
        columns += [(0, k, Stream.ACCEPT) for k in steps]
    if "residual" in reads:
        columns.append((0, 0, Stream.RESIDUAL))
    if "delta" in reads:
        columns += [(k + 1, 0, Stream.DELTA) for k in range(num_draft + 1)]
    offsets, indices, streams = np.array(columns, dtype=np.uint64).T
    positions = np.asarray(anchors, dtype=np.uint64)[:, None] + offsets
    drawn = uniforms(np.asarray(seeds, dtype=np.uint64)[:, None], positions, indices, streams)
    noise = torch.from_numpy(drawn).to(device, non_blocking=True)
    sizes = [
        num_draft,
        num_draft * ("accept" in reads),
        int("residual" in reads),
        (num_draft + 1) * ("delta" in reads),
    ]
    draft, accept, residual, delta = noise.split(sizes, dim=1)
    return draft, RoundUniforms(accept=accept[..., 0], residual=residual.flatten(1), delta=delta)
