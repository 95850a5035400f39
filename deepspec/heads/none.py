"""No dependence on the token just drafted: Z = 0. Confidence, if wanted, reads the hidden state alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from deepspec.interfaces import BuildContext, HeadStep, PartConfig, SequentialHead


class NoHeadConfig(PartConfig):
    """Options of the null head."""

    confidence: Literal["linear", "row_max", "none"] = Field(
        default="none", description="where conditional acceptance estimates come from"
    )


class NoHead(SequentialHead[None]):
    """Logits are the drafter's own."""

    name = "none"
    recordable = True
    Config = NoHeadConfig
    config: NoHeadConfig

    def __init__(self, config: NoHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.confidence_head = nn.Linear(context.hidden_size, 1) if config.confidence == "linear" else None

    @property
    def output_weight(self) -> Tensor | None:
        return None

    @property
    def confidence(self) -> str:
        return self.config.confidence

    def begin(self, hidden: Tensor) -> None:
        return None

    def step(self, previous: Tensor, hidden: Tensor, state: None) -> tuple[HeadStep, None]:
        return self.block(previous, hidden), None

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        confidence = None if self.confidence_head is None else self.confidence_head(hidden)[..., 0]
        return HeadStep(latent=None, confidence=confidence)
