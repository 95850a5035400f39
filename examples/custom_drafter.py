"""A drafter of your own, autoregressive, trained on the demo target: python examples/custom_drafter.py.

A GRU reads [c ; E[x_(k-1)]], c being the target's last hidden state before the anchor, and its output joins
c: h_k = norm(c + W g_k). A round begins with c alone, which a slot store keeps for every request, and the
GRU's state is all that one position hands to the next. This file is also the plugin that brings the drafter.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from deepspec import Strategy, hookimpl, train
from deepspec.config import DataConfig, RunConfig, TrainConfig
from deepspec.interfaces import BuildContext, Drafter, PartConfig, Readout
from deepspec.nn import RMSNorm, SlotStore
from deepspec.plugins import create_plugin_manager, register
from deepspec.testing import check_part
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, StepRecord, TokenBatch


@dataclass
class Round:
    """What a round hands from position to position: c [R, D], which stays, and the GRU's state [R, D]."""

    context: Tensor
    memory: Tensor


class GRUDrafter(Drafter[Round]):
    """Drafts with a GRU over the target's last hidden state and the tokens drafted so far."""

    name = "gru"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        size = context.target.hidden_size
        self.cell = nn.GRUCell(2 * size, size)
        self.out = nn.Linear(size, size, bias=False)
        self.norm = RMSNorm(size, context.target.rms_norm_eps)

    @property
    def hidden_size(self) -> int:
        """H is the target's D, because its LM head is the readout."""
        return self.context.target.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        """No layer is tapped: the last hidden state comes by itself."""
        return ()

    def readout(self) -> Readout:
        """The target's LM head, shared and frozen."""
        return Readout(self.context.target.lm_head, softcap=self.context.target.final_softcap)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        """One position more than the text has: position p lies at p + 1, and before the text lies a zero."""
        shape = (self.hidden_size,)
        self.slots = SlotStore(num_slots, max_positions + 1, shape, dtype=dtype, device=device)

    def extend(self, extension: Extension) -> None:
        """Keep the target's last hidden state of every committed token."""
        self.slots.write(extension.rows, extension.positions + 1, extension.features.last_hidden)

    def begin(self, anchors: Anchors) -> Round:
        """The state before the anchor; nothing is written, so there is nothing to roll back."""
        slots = anchors.slots if anchors.slot_range is None else anchors.slot_range
        stored = self.slots.read(slots, anchors.max_position + 1)
        before = stored[torch.arange(len(stored), device=stored.device), anchors.positions]
        return Round(before, torch.zeros_like(before))

    def step(self, state: Round, k: int, previous: Tensor) -> Tensor:
        """Decoding: one step of the GRU for all requests, in the round's own state."""
        target = self.context.target
        tokens = embedding(previous, target.embedding).to(state.context.dtype) * target.embedding_scale
        state.memory = self.cell(torch.cat([state.context, tokens], dim=-1), state.memory)
        return self.norm(state.context + self.out(state.memory))

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        """Training: the same steps for N anchors, with the true tokens as the previous ones."""
        before = features.last_hidden[anchors.rows, (anchors.columns - 1).clamp(min=0)]
        starts = batch.positions[anchors.rows, anchors.columns] == 0
        before = before.to(self.out.weight.dtype).masked_fill(starts[:, None], 0.0)
        state = Round(before, torch.zeros_like(before))
        hidden = [self.step(state, k, previous) for k, previous in enumerate(anchors.previous.unbind(1))]
        return torch.stack(hidden, dim=1)

    def release(self, slot: int) -> None:
        """Nothing to do: the next request of the slot overwrites it."""


@hookimpl
def deepspec_parts() -> list[type]:
    """The drafter; an installed plugin would name it by a string."""
    return [GRUDrafter]


def main() -> None:
    """Check the drafter, train it for a few steps, and say what came of it."""
    report = check_part(GRUDrafter).raise_if_failed()
    print(f"deepspec check: {len(report.properties)} properties hold")

    manager = create_plugin_manager()
    register(manager, sys.modules[__name__], name="custom-drafter")
    strategy = Strategy(name="gru", drafter="gru", head={"type": "markov", "rank": 32}, draft_length=4)
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
