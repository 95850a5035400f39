"""From target logits to the distribution that is preserved: temperature, top-k, top-p, min-p, in that order.

One function for plain and speculative decoding alike. A cut-off is one number a row and every token tied
with it is kept. Greedy (temperature 0) keeps the first largest token alone. Draft rows are never
truncated. Processors that depend on history are not supported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.types import Sampling

NEG_INF = float("-inf")


def process_rows(logits: Tensor, sampling: Sampling, requests: Tensor | None = None) -> Tensor:
    """Processed, unnormalised log-weights ``[B, V]`` in float32 (float64 for float64 logits), -inf where cut.

    Args:
        logits: ``[B, V]``, any float type.
        sampling: parameters of R requests.
        requests: int64 ``[B]``, each row's request; None when row i belongs to request i.
    """
    scaled = scale(logits, sampling, requests)
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        return scaled
    cutoff = truncation_cutoff(scaled, sampling, requests)
    return scaled.masked_fill(scaled < cutoff[:, None], NEG_INF)


def scale(logits: Tensor, sampling: Sampling, requests: Tensor | None = None) -> Tensor:
    """Upcast and apply temperature; at 0 only the first largest token stays, with log-weight 0."""
    values = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.unit:
        return values
    temperature = _per_row(sampling.temperature, requests).to(values.dtype)[:, None]
    if not sampling.any_greedy:
        return values / temperature
    greedy = temperature == 0
    first = values.argmax(dim=-1, keepdim=True)
    only = torch.full_like(values, NEG_INF).scatter_(-1, first, 0.0)
    return torch.where(greedy, only, values / torch.where(greedy, 1.0, temperature))


def truncation_cutoff(scaled: Tensor, sampling: Sampling, requests: Tensor | None = None) -> Tensor:
    """The smallest log-weight kept in each row, ``[B]``; -inf keeps everything."""
    ordered = scaled.sort(dim=-1, descending=True).values
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k is not None:
        top_k = _per_row(sampling.top_k, requests).clamp(1, ordered.shape[-1])
        kept &= ordered >= ordered.gather(-1, top_k[:, None] - 1)
    if sampling.top_p is not None:
        mass = ordered.masked_fill(~kept, NEG_INF).softmax(dim=-1)
        before = mass.cumsum(dim=-1) - mass
        top_p = _per_row(sampling.top_p, requests).to(mass.dtype)[:, None]
        kept &= (before < top_p) | (top_p >= 1)  # rounding lets the sum reach 1 before the tail
    if sampling.min_p is not None:
        floor = ordered[:, :1] + _per_row(sampling.min_p, requests).to(ordered.dtype).log()[:, None]
        kept &= ordered >= floor
    kept[:, 0] = True
    return ordered.masked_fill(~kept, float("inf")).amin(dim=-1)


def _per_row(values: Tensor, requests: Tensor | None) -> Tensor:
    return values if requests is None else values[requests]
