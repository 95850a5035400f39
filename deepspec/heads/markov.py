"""The Markov head: a low-rank bigram correction, B_k(x_{k-1}, .) = W_out W1[x_{k-1}] (DSpark, 2607.05147)."""

from __future__ import annotations

from torch import Tensor

from deepspec.heads.low_rank import LowRankHead
from deepspec.interfaces import HeadStep


class MarkovHead(LowRankHead[None]):
    """The latent is the previous token's embedding."""

    name = "markov"

    def begin(self, hidden: Tensor) -> None:
        return None

    def step(self, previous: Tensor, hidden: Tensor, state: None) -> tuple[HeadStep, None]:
        return self.block(previous, hidden), None

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        embedded = self.markov_w1(previous)
        return self.result(embedded, hidden, embedded)
