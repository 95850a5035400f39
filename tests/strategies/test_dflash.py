"""The DFlash drafter: training's block() and decoding's step() are the same function."""

from __future__ import annotations

import pytest
import torch
from deepspec_strategies.dflash.drafter import even_layers

from deepspec.errors import ConfigError
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target
from deepspec.testing import check_strategy
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, Span, TokenBatch
from tests.tiny_models import VOCAB, masked_target

G = 4


@pytest.fixture(scope="module")
def target() -> Target:
    return masked_target()


LAYOUTS = pytest.mark.parametrize("from_anchor", [True, False], ids=["anchor-first", "original"])


def _parts(target: Target, draft_length: int = G, *, from_anchor: bool = True) -> Parts:
    torch.manual_seed(0)
    strategy = Strategy.named("dspark").replace(
        draft_length=draft_length,
        drafter={"num_layers": 2, "num_target_layers": 2, "sample_from_anchor": from_anchor},
        head={"rank": 6},
    )
    parts = strategy.build(target.info)
    parts.modules().double().eval()
    return parts


def _batch() -> TokenBatch:
    tokens = torch.randint(0, VOCAB - 1, (2, 24), generator=torch.Generator().manual_seed(2))
    segments = torch.tensor([[0] * 24, [0] * 10 + [1] * 12 + [-1] * 2])
    positions = torch.tensor([list(range(24)), [*range(10), *range(12), 0, 0]])
    return TokenBatch(tokens, segments, positions, segments >= 0)


def _blocks(rows: list[int], columns: list[int]) -> AnchorBlocks:
    n = len(rows)
    empty = torch.zeros(n, G, dtype=torch.int64)
    return AnchorBlocks(torch.tensor(rows), torch.tensor(columns), empty, empty, empty.bool())


@LAYOUTS
@torch.no_grad()
def test_block_equals_step_for_every_anchor_also_in_packed_rows(target: Target, from_anchor: bool) -> None:
    parts, batch = _parts(target, from_anchor=from_anchor), _batch()
    drafter = parts.drafter
    features = target.features(batch, drafter.target_layers)
    anchors = _blocks([1, 0, 1, 0, 1, 0], [15, 3, 2, 19, 10, 0])
    trained = drafter.block(batch, features, anchors)
    longest = int(batch.positions[anchors.rows, anchors.columns].max())
    drafter.allocate(4, longest, torch.float64, torch.device("cpu"))  # not one committed token more
    for n, (row, column) in enumerate(zip(anchors.rows.tolist(), anchors.columns.tolist(), strict=True)):
        length = int(batch.positions[row, column])
        begin = column - length
        span = slice(begin, column)
        slot = torch.tensor([n % 4])
        if length:
            drafter.extend(
                Extension(
                    slots=slot,
                    spans=(Span(n % 4, 0, length),),
                    rows=slot.expand(length),
                    positions=torch.arange(length),
                    tokens=batch.tokens[row, span],
                    next_tokens=batch.tokens[row, begin + 1 : column + 1],
                    features=Features(features.tapped[row, span], features.last_hidden[row, span]),
                )
            )
        anchor = batch.tokens[row, column : column + 1]
        start = Anchors(slot, anchor, torch.tensor([length]), (Span(n % 4, length, 1),), G)
        state = drafter.begin(start)
        stepped = torch.stack([drafter.step(state, k, start.tokens)[0] for k in range(G)])
        torch.testing.assert_close(stepped, trained[n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(drafter.parallel_hidden(state)[0], stepped)


@torch.no_grad()
def test_the_original_layout_has_the_same_slots_and_draws_from_all_but_the_first(target: Target) -> None:
    batch, anchors = _batch(), _blocks([1, 0, 1], [15, 3, 2])
    longer, original = _parts(target, G + 1).drafter, _parts(target, from_anchor=False).drafter
    features = target.features(batch, original.target_layers)
    original.load_state_dict(longer.state_dict())
    slots = longer.block(batch, features, anchors)
    torch.testing.assert_close(original.block(batch, features, anchors), slots[:, 1:])


def test_the_original_layout_keeps_the_law() -> None:
    check_strategy(Strategy.named("dflash").replace(drafter={"sample_from_anchor": False})).raise_if_failed()


@LAYOUTS
@torch.no_grad()
def test_a_block_sees_nothing_at_or_after_its_anchor_but_the_anchor(
    target: Target, from_anchor: bool
) -> None:
    drafter, batch = _parts(target, from_anchor=from_anchor).drafter, _batch()
    features = target.features(batch, drafter.target_layers)
    changed = Features(features.tapped.clone(), features.last_hidden)
    changed.tapped[0, 8:] += 1.0
    anchors = _blocks([0], [8])
    torch.testing.assert_close(
        drafter.block(batch, features, anchors), drafter.block(batch, changed, anchors)
    )
    changed.tapped[0, 7] += 1.0
    difference = drafter.block(batch, features, anchors) - drafter.block(batch, changed, anchors)
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_the_markov_heads_block_equals_its_steps(target: Target) -> None:
    head = _parts(target).head
    torch.nn.init.normal_(head.markov_w2.weight)
    hidden = torch.randn(3, G, target.info.hidden_size, dtype=torch.float64)
    previous = torch.randint(0, VOCAB, (3, G))
    whole, state = head.block(previous, hidden), head.begin(hidden[:, 0])
    for k in range(G):
        step, state = head.step(previous[:, k], hidden[:, k], state)
        torch.testing.assert_close(step.latent, whole.latent[:, k])
        torch.testing.assert_close(step.confidence, whole.confidence[:, k])


def test_default_layers_are_the_published_ones_for_36() -> None:
    assert even_layers(36, 5) == (1, 9, 17, 25, 33)
    assert even_layers(4, 5) == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_layers": (3,)}, "never the last"),
        ({"target_layers": (0, 17)}, "layer 17"),
        ({"mask_token_id": VOCAB}, "mask_token_id"),
    ],
)
def test_impossible_options_are_refused(target: Target, options: dict[str, object], message: str) -> None:
    from deepspec.engine import Engine

    with pytest.raises(ConfigError, match=message):
        Engine(target, Strategy.named("dflash").replace(drafter=options).build(target.info))
