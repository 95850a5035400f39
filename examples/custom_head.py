"""A sequential head of your own, trained on the shipped demo target: python examples/custom_head.py.

The head adds up what the drafted tokens of a block say: s_k = decay * s_(k-1) + E[x_(k-1)], a memory that
fades. It corrects the logits of the DFlash drafter by W_out s_k. This file is also the plugin that brings it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from deepspec import Strategy, hookimpl, train
from deepspec.config import DataConfig, RunConfig, TrainConfig
from deepspec.interfaces import BuildContext, HeadStep, PartConfig, SequentialHead
from deepspec.plugins import create_plugin_manager, register
from deepspec.testing import check_part
from deepspec.types import StepRecord


class FadingHead(SequentialHead[Tensor]):
    """Corrects the next logits by a fading sum of the tokens drafted so far."""

    name = "fading"
    confidence = "row_max"
    rank, decay = 32, 0.5

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.embedding = nn.Embedding(context.target.vocab_size, self.rank)
        self.out = nn.Linear(self.rank, context.draft_vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=self.rank**-0.5)
        nn.init.zeros_(self.out.weight)  # it starts at no correction

    @property
    def output_weight(self) -> Tensor:
        """W_out [Vd, Z]."""
        return self.out.weight

    def begin(self, hidden: Tensor) -> Tensor:
        """An empty memory [R, Z]."""
        return torch.zeros_like(self.embedding.weight[:1]).expand(len(hidden), -1)

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor) -> tuple[HeadStep, Tensor]:
        """Decoding: the previous token [R] joins the memory."""
        state = self.decay * state + self.embedding(previous)
        return HeadStep(state, confidence=None), state

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        """Training: all G memories [N, G, Z] are one product with the weights decay^(k-j), j <= k."""
        steps = torch.arange(previous.shape[1], device=previous.device)
        weights = (self.decay ** (steps[:, None] - steps).clamp(min=0)).tril()
        embedded = self.embedding(previous)
        return HeadStep(weights.to(embedded.dtype) @ embedded, confidence=None)


@hookimpl
def deepspec_parts() -> list[type]:
    """The head; an installed plugin would name it by a string."""
    return [FadingHead]


def main() -> None:
    """Check the head, train it for a few steps, and say what came of it."""
    report = check_part(FadingHead).raise_if_failed()
    print(f"deepspec check: {len(report.properties)} properties hold")

    manager = create_plugin_manager()
    register(manager, sys.modules[__name__], name="custom-head")
    strategy = Strategy.named("dflash").replace(name="fading", head="fading", drafter={"num_layers": 1})
    config = RunConfig(
        strategy=strategy,
        data=DataConfig(sequence_length=64, held_out_fraction=0.1),
        train=TrainConfig(num_steps=12, sequences_per_step=2, anchors_per_sequence=8),
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl"
        lines = [{"text": f"total = {n}\nfor item in items:\n    total += item + {n}\n"} for n in range(100)]
        text.write_text("".join(json.dumps(line) + "\n" for line in lines))
        seen: list[StepRecord] = []
        train(
            strategy, data=text, config=config, out=f"{folder}/run", observers=[seen.append], manager=manager
        )
    for record in (seen[0], seen[-1]):
        length = record.expected_accepted_length
        print(f"step {record.step}: loss {record.loss:.2f}, expected accepted length {length:.2f}")


if __name__ == "__main__":
    main()
