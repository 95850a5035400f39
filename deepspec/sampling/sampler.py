"""The one place that draws draft tokens, and records the q they were drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepspec.sampling.categorical import draw
from deepspec.sampling.process import scale
from deepspec.types import Sampling


@dataclass(frozen=True)
class Drawn:
    """Tokens int64 ``[R]``, the row's log-sum-exp after temperature, and the token's log q."""

    tokens: Tensor
    log_sum_exp: Tensor
    log_q: Tensor


def draw_draft(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Drawn:
    """Draw from stored rows ``[R, V]`` after temperature, with uniforms ``[R, 2]``.

    The stored values are upcast first, whatever their type, so that the q which a verifier recomputes
    from them is bit for bit the q that was sampled.
    """
    values = scale(logits, sampling)
    log_sum_exp = values.logsumexp(dim=-1)
    tokens = draw((values - log_sum_exp[:, None]).exp(), uniforms)
    log_q = values.gather(-1, tokens[:, None])[:, 0] - log_sum_exp
    return Drawn(tokens=tokens, log_sum_exp=log_sum_exp, log_q=log_q)
