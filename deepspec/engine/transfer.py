"""What a step tells the host, in one device-to-host copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_host(groups: Sequence[Sequence[Tensor]]) -> NDArray[np.int64]:
    """The step's one device-to-host copy: groups of rows, each of columns int64 ``[R]`` or ``[R, n]``."""
    columns = [torch.cat([c if c.ndim > 1 else c[:, None] for c in group], dim=1) for group in groups]
    return torch.cat(columns).cpu().numpy() if columns else np.zeros((0, 4), dtype=np.int64)


def as_words(signal: Tensor) -> Tensor:
    """The bits of float32 values as integers, so that they travel in the one copy."""
    return signal.float().contiguous().view(torch.int32).to(torch.int64)


def as_floats(words: NDArray[np.int64], num_signals: int) -> NDArray[np.float32]:
    """What :func:`as_words` made integers of: ``[R, num_signals, G]``."""
    floats = words.astype(np.int32).view(np.float32)
    return floats.reshape(len(words), num_signals, -1 if words.size else 0)
