"""A low-rank trigram head: the latent of position k is E1[x_(k-1)] + E2[x_(k-2)].

Position 0 follows the anchor and knows no earlier token: its E2 is zero.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from deepspec.interfaces import BuildContext, HeadStep, PartConfig, SequentialHead


class TemplateConfig(PartConfig):
    """Options of the head, as in ``--set head.rank=64``."""

    rank: int = Field(default=32, ge=1, description="Z, width of the latent")


class TemplateHead(SequentialHead[Tensor]):
    """Corrects the next logits by the last two tokens; its state is E2 of the token before the last."""

    name = "template"
    Config = TemplateConfig
    config: TemplateConfig
    #: The largest probability of each row, which needs no training; never that of the token drawn from it.
    confidence = "row_max"

    def __init__(self, config: TemplateConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.last = nn.Embedding(context.target.vocab_size, config.rank)
        self.earlier = nn.Embedding(context.target.vocab_size, config.rank)
        self.out = nn.Linear(config.rank, context.draft_vocab_size, bias=False)
        for table in (self.last, self.earlier):
            nn.init.normal_(table.weight, std=config.rank**-0.5)
        nn.init.zeros_(self.out.weight)  # it starts at no correction

    @property
    def output_weight(self) -> Tensor:
        """W_out [Vd, Z]; the core adds latent @ W_out.T to the drafter's logits."""
        return self.out.weight

    def begin(self, hidden: Tensor) -> Tensor:
        """No earlier token yet: zeros [R, Z]."""
        return torch.zeros_like(self.earlier.weight[:1]).expand(len(hidden), -1)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[HeadStep, Tensor]:
        """Decoding, one position: previous [R], hidden [R, H] in, latent [R, Z] and the next state out."""
        return HeadStep(self.last(previous) + state, confidence=None), self.earlier(previous)

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        """Training, all positions at once: previous [N, G] in, latent [N, G, Z] out; equals looped steps."""
        earlier = nn.functional.pad(self.earlier(previous[:, :-1]), (0, 0, 1, 0))
        return HeadStep(self.last(previous) + earlier, confidence=None)
