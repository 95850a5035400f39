"""Documents that share a training row do not see each other: not in the target, not in any drafter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepspec.data.batches import BatchSampler
from deepspec.data.corpus import TokenizedCorpus
from deepspec.interfaces import Drafter
from deepspec.strategy import Strategy
from deepspec.train.assemble import assemble
from deepspec.types import TokenBatch
from tests.strategies.stepping import blocks
from tests.tiny_models import VOCAB, masked_target

CPU = torch.device("cpu")
LENGTHS = (11, 9, 4)


def packed() -> TokenBatch:
    """One row of three documents, packed as training packs them."""
    tokens = torch.randint(0, VOCAB - 1, (sum(LENGTHS),), generator=torch.Generator().manual_seed(4))
    ends = torch.tensor(LENGTHS).cumsum(0)
    corpus = TokenizedCorpus(tokens.int(), torch.ones_like(tokens).bool(), ends, torch.arange(len(LENGTHS)))
    sampler = BatchSampler(corpus, sequences=1, sequence_length=24, seed=0)
    assert sampler.num_rows == 1
    return sampler.batch(0)


@pytest.mark.parametrize("name", ["dflash", "dspark", "eagle3", "mtp", "draft_model"])
def test_a_document_is_drafted_as_if_it_were_alone_in_its_row(name: str) -> None:
    target = masked_target()
    chosen = Strategy.named(name).replace(draft_length=3)
    parts = assemble(chosen, target, device=CPU, dtype=torch.float64, seed=0)
    assert isinstance(parts.drafter, Drafter)
    batch = packed()
    columns = [12, 14, 16]  # in the second document; no anchor is a first token
    assert batch.segments[0, columns].tolist() == [1, 1, 1]
    anchors = blocks(batch, [0, 0, 0], columns, 3)
    others = batch.segments != 1
    changed = replace(batch, tokens=torch.where(others, (batch.tokens + 7) % (VOCAB - 1), batch.tokens))
    found = []
    for one in (batch, changed):
        features = target.features(one, parts.drafter.target_layers)
        hidden = parts.drafter.block(one, features, anchors)
        found.append((features.last_hidden[~others], hidden))
    (features, hidden), (features_changed, hidden_changed) = found
    assert torch.equal(features, features_changed)
    assert torch.equal(hidden, hidden_changed)
