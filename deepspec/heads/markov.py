"""The Markov head: a low-rank bigram correction, B_k(x_{k-1}, .) = W_out W1[x_{k-1}] (DSpark, 2607.05147)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deepspec.interfaces import BuildContext, HeadStep, PartConfig, SequentialHead


class MarkovConfig(PartConfig):
    """Options of the Markov head."""

    rank: int | None = Field(
        default=None, ge=1, description="Z; null is a third of the hidden size, at most 256"
    )
    confidence: Literal["linear", "row_max", "none"] = Field(
        default="linear", description="where conditional acceptance estimates come from"
    )


class MarkovHead(SequentialHead[None]):
    """The latent is the previous token's embedding; it starts at no correction."""

    name = "markov"
    Config = MarkovConfig
    config: MarkovConfig

    def __init__(self, config: MarkovConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        rank = config.rank or min(256, max(1, context.hidden_size // 3))
        self.markov_w1 = nn.Embedding(context.target.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, context.draft_vocab_size, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=rank**-0.5)
        nn.init.zeros_(self.markov_w2.weight)
        linear = config.confidence == "linear"
        self.confidence_head = nn.Linear(context.hidden_size + rank, 1) if linear else None

    @property
    def output_weight(self) -> Tensor | None:
        return self.markov_w2.weight

    @property
    def confidence(self) -> str:
        return self.config.confidence

    def begin(self, hidden: Tensor) -> None:
        return None

    def step(self, previous: Tensor, hidden: Tensor, state: None) -> tuple[HeadStep, None]:
        return self.block(previous, hidden), None

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        latent = self.markov_w1(previous)
        confidence = None
        if self.confidence_head is not None:
            confidence = self.confidence_head(torch.cat([hidden, latent.to(hidden.dtype)], dim=-1))[..., 0]
        return HeadStep(latent=latent, confidence=confidence)
