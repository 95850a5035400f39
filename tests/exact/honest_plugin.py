"""A third party's plugin as it would be written outside: a policy, a head and a strategy."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deepspec import Strategy, hookimpl
from deepspec.interfaces import BuildContext, HeadStep, LengthPolicy, PartConfig, SequentialHead
from deepspec.types import Load


class FloorConfig(PartConfig):
    """Options of the floor policy."""

    floor: float = Field(default=0.3, ge=0, le=1, description="smallest survival that is still verified")


class FloorLength(LengthPolicy):
    """Verify while survival stays above a floor; it never rises, so what follows a miss does not count."""

    name = "floor"
    Config = FloorConfig
    config: FloorConfig

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        return (survival >= self.config.floor).to(drafted.dtype).cumprod(dim=1).sum(dim=1).minimum(drafted)


class RecurrentHead(SequentialHead[Tensor]):
    """A gated memory of the drafted tokens corrects the logits and gives the confidence."""

    name = "recurrent"
    confidence: ClassVar[str] = "linear"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.embedding = nn.Embedding(context.target.vocab_size, 4)
        self.cell = nn.GRUCell(4, 4)
        self.out = nn.Linear(4, context.draft_vocab_size, bias=False)
        self.accept = nn.Linear(context.hidden_size + 4, 1)

    @property
    def output_weight(self) -> Tensor:
        return self.out.weight

    def begin(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros((len(hidden), 4))

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[HeadStep, Tensor]:
        state = self.cell(self.embedding(previous), state)
        return HeadStep(state, self.accept(torch.cat([hidden, state], dim=-1))[..., 0]), state

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        state, steps = self.begin(hidden[:, 0]), []
        for k in range(previous.shape[1]):
            step, state = self.step(previous[:, k], hidden[:, k], state)
            steps.append(step)
        return HeadStep(
            *(
                torch.stack(each, dim=1)
                for each in zip(*((s.latent, s.confidence) for s in steps), strict=True)
            )
        )


@hookimpl
def deepspec_parts() -> list[type]:
    return [FloorLength, RecurrentHead]


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    return [
        Strategy(name="honest", drafter="dflash", head="recurrent", policy={"type": "floor", "floor": 0.2})
    ]
