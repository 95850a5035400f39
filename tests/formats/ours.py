"""What a loaded checkpoint of ours gives for one request, its drafts forced to given tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deepspec.formats.opened import open_draft
from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.types import AnchorBlocks, Features, TokenBatch
from tests.formats.foreign import H
from tests.tiny_models import VOCAB

G, CONTEXT = 4, 9


def text(taps: int = 2) -> tuple[Tensor, Tensor]:
    """``CONTEXT`` tokens, an anchor and G drafts; features ``[CONTEXT, taps*H]``."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB - 1, (CONTEXT + 1 + G,), generator=generator)
    return tokens, torch.randn(CONTEXT, taps * H, generator=generator)


def loaded(name: Path, target: Target) -> Parts:
    return open_draft(str(name), target=target).parts


@torch.no_grad()
def drafted(parts: Parts, tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits ``[G, Vd]`` and confidences ``[G]``."""
    length = CONTEXT + 1
    batch = TokenBatch(
        tokens[None, :length],
        torch.zeros(1, length, dtype=torch.int64),
        torch.arange(length)[None],
        torch.ones(1, length, dtype=torch.bool),
    )
    padded = torch.cat([features, torch.zeros(1, features.shape[1])])[None]
    labels, previous = tokens[None, length : length + G], tokens[None, CONTEXT : CONTEXT + G]
    at = torch.tensor([0]), torch.tensor([CONTEXT])
    anchors = AnchorBlocks(*at, labels, previous, torch.ones(1, G).bool())
    hidden = parts.drafter.block(batch, Features(padded, padded[..., :H]), anchors)
    step = parts.head.block(previous, hidden)
    readout = parts.drafter.readout()
    logits = hidden @ readout.weight.T
    if readout.softcap is not None:
        logits = readout.softcap * torch.tanh(logits / readout.softcap)
    if step.latent is not None:
        logits = logits + step.latent @ parts.head.output_weight.T
    return logits[0], None if step.confidence is None else step.confidence[0]
