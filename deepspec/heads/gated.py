"""The gated head: a bigram correction that the hidden state scales, entry by entry (DSpark, 2607.05147).

B_k = W_out (sigmoid(W_g [h_k ; e] + b) * e),  e = W1[x_{k-1}]
"""

from __future__ import annotations

from torch import Tensor, nn

from deepspec.heads.low_rank import LowRankConfig, LowRankHead, joined
from deepspec.interfaces import BuildContext, HeadStep


class GatedHead(LowRankHead[None]):
    """The latent is the previous token's embedding behind a gate."""

    name = "gated"

    def __init__(self, config: LowRankConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.gate_proj = nn.Linear(context.hidden_size + self.rank, self.rank)

    def begin(self, hidden: Tensor) -> None:
        return None

    def step(self, previous: Tensor, hidden: Tensor, state: None) -> tuple[HeadStep, None]:
        return self.block(previous, hidden), None

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        embedded = self.markov_w1(previous)
        gate = self.gate_proj(joined(hidden, embedded)).sigmoid()
        return self.result(gate * embedded, hidden, embedded)
