"""The RNN head: a correction that remembers the block's earlier tokens (DSpark, 2607.05147).

(g, c, o) = W [s_{k-1} ; W1[x_{k-1}] ; h_k] + b
s_k = sigmoid(g) * s_{k-1} + (1 - sigmoid(g)) * tanh(c),  s_0 = 0
B_k = W_out tanh(o)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from deepspec.heads.low_rank import LowRankConfig, LowRankHead
from deepspec.interfaces import BuildContext, HeadStep


class RnnHead(LowRankHead[Tensor]):
    """The state is s ``[R, Z]``."""

    name = "rnn"

    def __init__(self, config: LowRankConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.joint_proj = nn.Linear(2 * self.rank + context.hidden_size, 3 * self.rank)

    def begin(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros((len(hidden), self.rank))

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[HeadStep, Tensor]:
        embedded = self.markov_w1(previous)
        latent, state = self._advance(self._driven(hidden, embedded), state)
        return self.result(latent, hidden, embedded), state

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        embedded = self.markov_w1(previous)
        state, latents = self.begin(hidden[:, 0]), []
        for driven in self._driven(hidden, embedded).unbind(dim=1):
            latent, state = self._advance(driven, state)
            latents.append(latent)
        return self.result(torch.stack(latents, dim=1), hidden, embedded)

    def _driven(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """The part of (g, c, o) ``[..., 3Z]`` that does not depend on the state: all positions at once."""
        inputs = torch.cat([embedded.to(hidden.dtype), hidden], dim=-1)
        return linear(inputs, self.joint_proj.weight[:, self.rank :], self.joint_proj.bias)

    def _advance(self, driven: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latent and next state, ``[R, Z]`` each."""
        mixed = driven + linear(state, self.joint_proj.weight[:, : self.rank])
        gate, candidate, output = mixed.chunk(3, dim=-1)
        gate = gate.sigmoid()
        return output.tanh(), gate * state + (1 - gate) * candidate.tanh()
