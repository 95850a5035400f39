"""An SPS curve for a machine that is not at hand, from its bandwidth and arithmetic: a roofline model.

A step reads the weights it needs and the keys and values of every running request, and computes 2 operations
for each active weight and token. Reading and computing overlap in part, and a step has a fixed overhead.
Nothing is measured: peak numbers, no contention, one context length. Curves made here say ``modelled``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepspec.curves import DraftCost, SpsCurve
from deepspec.errors import ConfigError


@dataclass(frozen=True)
class Hardware:
    """One accelerator.

    Attributes:
        bandwidth: bytes per second from its memory. flops: dense 16-bit operations per second.
        overhead_s: of every step, for launching it. position_s: of every position of a sequential head.
        overlap: share of the shorter of reading and computing that is hidden behind the longer.
    """

    name: str
    bandwidth: float
    flops: float
    overhead_s: float = 500e-6
    position_s: float = 15e-6
    overlap: float = 0.5


@dataclass(frozen=True)
class TargetShape:
    """What a target weighs, and the drafter for it.

    Attributes:
        params: weights. active_params: those that a token uses, fewer in a mixture of experts.
        weight_bytes: of all weights. kv_bytes: of one position's keys and values.
        draft_params: of a parallel drafter with its readout. draft_bytes: of its weights.
        head_bytes: what the sequential head reads for each drafted position.
    """

    name: str
    params: float
    active_params: float
    weight_bytes: float
    kv_bytes: float
    draft_params: float
    draft_bytes: float
    head_bytes: float


#: Data sheets: H200 SXM 141 GB and H100 SXM 80 GB.
HARDWARE = {
    "h200": Hardware("NVIDIA H200", bandwidth=4.8e12, flops=989e12),
    "h100": Hardware("NVIDIA H100", bandwidth=3.35e12, flops=989e12),
}

#: Shapes of published dense models. ``4b``: 36 layers of 2,560 with 8 key/value heads of 128, 16-bit
#: (Qwen3-4B). ``70b``: 80 layers of 8,192 with 8 key/value heads of 128, 8-bit weights and keys, 16-bit
#: arithmetic (Llama-3-70B). The drafter is five of the target's layers, its readout, and a head of rank 256
#: in 16 bits.
TARGETS = {
    "4b": TargetShape("4b class", 4.0e9, 4.0e9, 8.0e9, 147_456, 0.9e9, 1.8e9, 78e6),
    "70b": TargetShape("70b class", 70e9, 70e9, 70e9, 163_840, 5.4e9, 10.8e9, 66e6),
}


def roofline_curve(
    hardware: Hardware, target: TargetShape, *, num_requests: int, context_length: float, most_tokens: int
) -> SpsCurve:
    """SPS at 1..``most_tokens`` verify tokens, and what drafting takes.

    Args:
        num_requests: whose keys and values every step reads. context_length: their mean number of positions.

    Step time is ``overhead + max(reading, computing) + (1 - overlap) * min(reading, computing)``; of a
    mixture of experts B tokens read the share 1 - (1 - active / all) ** B of the weights.
    """
    tokens = _grid(most_tokens, _ridge(hardware, target, num_requests, context_length))
    unread = np.float64(1 - target.active_params / target.params) ** tokens
    reading = _read_s(hardware, target, num_requests, context_length, 1 - unread)
    computing = 2 * target.active_params * tokens / hardware.flops
    longer, shorter = np.maximum(reading, computing), np.minimum(reading, computing)
    times = hardware.overhead_s + longer + (1 - hardware.overlap) * shorter
    return SpsCurve(
        verify_tokens=tuple(tokens.tolist()),
        steps_per_s=tuple((1 / times).tolist()),
        modelled=True,
        hardware=hardware.name,
        model=target.name,
        dtype="bfloat16",
        draft=draft_cost(hardware, target),
    )


def draft_cost(hardware: Hardware, target: TargetShape) -> DraftCost:
    """One pass of a parallel drafter, then a sequential head, position by position."""
    layers_share = target.draft_params / target.params
    return DraftCost(
        seconds=target.draft_bytes / hardware.bandwidth + layers_share * hardware.overhead_s,
        seconds_per_position=target.head_bytes / hardware.bandwidth + hardware.position_s,
        seconds_per_token=2 * target.draft_params / hardware.flops,
    )


def _read_s(
    hardware: Hardware,
    target: TargetShape,
    num_requests: int,
    context_length: float,
    share: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.float64]:
    held = num_requests * context_length * target.kv_bytes
    return np.asarray((target.weight_bytes * share + held) / hardware.bandwidth)


def _ridge(hardware: Hardware, target: TargetShape, num_requests: int, context_length: float) -> float:
    """B at which computing takes as long as reading."""
    per_token = 2 * target.active_params / hardware.flops
    return float(_read_s(hardware, target, num_requests, context_length)) / per_token


def _grid(most_tokens: int, ridge: float) -> NDArray[np.int64]:
    """Powers of two and the kink of a dense model's roofline, between which its step time is straight."""
    powers = 2 ** np.arange(int(most_tokens).bit_length())
    kink = np.clip([int(ridge), int(ridge) + 1], 1, most_tokens)
    return np.unique([*powers, *kink, most_tokens])


def tiled(curve: SpsCurve, tile: int, most_tokens: int) -> SpsCurve:
    """The same machine where a step takes as long as one of the next multiple of ``tile`` tokens: stairs.

    Matrix products go by tiles of 64 to 256 rows on a GPU, and published step times show such stairs. Raises
    ConfigError for a tile that is none.
    """
    if tile < 1:
        raise ConfigError(f"tile is {tile}; allowed is an integer >= 1")
    whole = curve.table(-(-most_tokens // tile) * tile)
    starts = range(1, most_tokens + 1, tile)
    points = sorted({(b, whole[start + tile - 2]) for start in starts for b in (start, start + tile - 1)})
    return curve.model_copy(
        update={
            "verify_tokens": tuple(b for b, _ in points),
            "steps_per_s": tuple(speed for _, speed in points),
            "modelled": True,
        }
    )
