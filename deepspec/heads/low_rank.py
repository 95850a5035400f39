"""What the heads of DSpark (2607.05147) share: B = W_out latent of rank Z, the previous token's embedding W1,
and where confidence comes from."""

from __future__ import annotations

from abc import ABC
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deepspec.interfaces import BuildContext, HeadStep, PartConfig, SequentialHead

StateT = TypeVar("StateT")


class LowRankConfig(PartConfig):
    """Options of a low-rank head."""

    rank: int | None = Field(
        default=None, ge=1, description="Z; null is a third of the hidden size, at most 256"
    )
    confidence: Literal["linear", "row_max", "none"] = Field(
        default="linear", description="where conditional acceptance estimates come from"
    )
    confidence_reads_token: bool = Field(
        default=True,
        description="for linear: whether it reads W1 of the previous token beside the hidden state",
    )


class LowRankHead(SequentialHead[StateT], ABC):
    """A head whose latent is Z wide; it starts at no correction, since W_out is zero.

    Attributes:
        rank: Z.
        markov_w1: W1 ``[V, Z]``, by target id.
    """

    Config = LowRankConfig
    recordable = True
    config: LowRankConfig

    def __init__(self, config: LowRankConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.rank = config.rank or min(256, max(1, context.hidden_size // 3))
        self.markov_w1 = nn.Embedding(context.target.vocab_size, self.rank)
        self.markov_w2 = nn.Linear(self.rank, context.draft_vocab_size, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=self.rank**-0.5)
        nn.init.zeros_(self.markov_w2.weight)
        linear = config.confidence == "linear"
        width = context.hidden_size + (self.rank if config.confidence_reads_token else 0)
        self.confidence_head = nn.Linear(width, 1) if linear else None

    @property
    def output_weight(self) -> Tensor | None:
        return self.markov_w2.weight

    @property
    def confidence(self) -> str:
        return self.config.confidence

    def result(self, latent: Tensor, hidden: Tensor, embedded: Tensor) -> HeadStep:
        """The latent, with the confidence logit w [h_k ; W1[x_{k-1}]] + b when it is trained."""
        confidence = None
        if self.confidence_head is not None:
            read = joined(hidden, embedded) if self.config.confidence_reads_token else hidden
            confidence = self.confidence_head(read)[..., 0]
        return HeadStep(latent=latent, confidence=confidence)


def joined(hidden: Tensor, embedded: Tensor) -> Tensor:
    """[h_k ; W1[x_{k-1}]], ``[..., H + Z]``: what a position knows before its token is drawn."""
    return torch.cat([hidden, embedded.to(hidden.dtype)], dim=-1)
