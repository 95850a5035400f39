"""DFlash's drafter: one parallel pass over an anchor and mask tokens, with target features as context.

Chen et al. 2026 (2602.06036). Every draft layer attends from the block's slots to the keys and values of
the injected context features and of the block itself, both directions inside the block. Slot k predicts
the token at anchor + k + 1, or in the original layout the one in its own place, so that the anchor's slot
predicts nothing. Weight names are the field's shared ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import embedding

from deepspec.errors import ConfigError
from deepspec.interfaces import BuildContext, Drafter, Readout, TokenCount, TokenId
from deepspec.nn import (
    AnchorGrid,
    DecoderLayer,
    DraftVocabulary,
    LayerOptions,
    RMSNorm,
    RotaryTable,
    SlotStore,
    attention_mask,
    grouped_attention,
    pass_through_,
    rotary_table,
)
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, TokenBatch


class DFlashConfig(LayerOptions):
    """Options of the DFlash drafter; a size left out is the target's."""

    num_layers: int | None = Field(
        default=None, ge=1, description="draft layers; null is a sixth of the target's depth, at most 5"
    )
    num_target_layers: int = Field(
        default=5,
        ge=1,
        description="tapped target layers, evenly spread, when not named; fewer where there are fewer",
    )
    target_layers: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="tapped target layers, 0-based, never the last"
    )
    mask_token_id: TokenId | None = Field(default=None, description="token id that real text never uses")
    sample_from_anchor: bool = Field(
        default=True,
        description="whether the anchor's slot gives the first draft token: G slots; false is the original "
        "layout of 1 + G slots, each predicting the token in its own place",
    )
    draft_vocab_size: TokenCount | None = Field(
        default=None,
        ge=1,
        description="tokens that can be drafted: the most frequent of the training text; null is all",
    )
    own_head: bool = Field(
        default=False, description="whether it trains a LM head of its own, which starts as the target's"
    )

    @model_validator(mode="after")
    def _named_or_counted(self) -> DFlashConfig:
        if self.target_layers is not None and "num_target_layers" in self.model_fields_set:
            raise ValueError("num_target_layers counts layers that are not named; give one of the two")
        return self


@dataclass(frozen=True)
class BlockState:
    """A round's hidden states ``[R, G, H]``."""

    hidden: Tensor


def draft_depth(num_layers: int) -> int:
    """Draft layers for a target of that depth: five as published, fewer where it is shallow."""
    return min(5, max(1, round(num_layers / 6)))


def even_layers(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers from the second to the third from last, evenly spread (2602.06036, section 3)."""
    first, last = min(1, num_layers - 2), max(num_layers - 3, 0)
    if count == 1 or last <= first:
        return (last,)
    return tuple(sorted({round(first + i * (last - first) / (count - 1)) for i in range(count)}))


class DFlashDrafter(Drafter[BlockState]):
    """Parallel block drafter over target features; the embedding is the target's, and mostly the LM head."""

    name = "dflash"
    reads_last_hidden = False
    Config = DFlashConfig
    config: DFlashConfig

    def __init__(self, config: DFlashConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        info = context.target
        self.info = info
        self._target_layers = config.target_layers or even_layers(info.num_layers, config.num_target_layers)
        self.mask_token_id = _mask_token(config, context)
        self.num_idle = 0 if config.sample_from_anchor else 1  # slots that predict nothing, the first ones
        self.width = self.num_idle + context.draft_length
        layer = config.layer_config(info)
        self._rope = layer.rope
        size, eps, unit_offset = info.hidden_size, layer.eps, layer.traits.unit_offset
        self.fc = nn.Linear(len(self._target_layers) * size, size, bias=False)
        pass_through_(self.fc.weight)
        self.hidden_norm = RMSNorm(size, eps, unit_offset=unit_offset)
        layers = [DecoderLayer(layer) for _ in range(config.num_layers or draft_depth(info.num_layers))]
        self.layers = nn.ModuleList(layers)
        self._layers = tuple(layers)
        self.norm = RMSNorm(size, eps, unit_offset=unit_offset)
        self.vocabulary = DraftVocabulary(info, config.draft_vocab_size, own_head=config.own_head)
        self.slots: list[SlotStore] = []

    @property
    def hidden_size(self) -> int:
        return self.info.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        return self._target_layers

    @property
    def reserved_token_ids(self) -> tuple[int, ...]:
        return (self.mask_token_id,)

    def readout(self) -> Readout:
        return self.vocabulary.readout()

    def choose_vocabulary(self, counts: Tensor, required: Sequence[int]) -> float | None:
        return self.vocabulary.choose(counts, required)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        attention = self._layers[0].self_attn
        shape = (2, attention.num_kv_heads, attention.head_dim)  # keys and values
        room = max_positions + self.width  # a block lies behind the committed tokens
        self.slots = [SlotStore(num_slots, room, shape, dtype=dtype, device=device) for _ in self._layers]
        self._table = RotaryTable(room, self._rope, dtype=dtype, device=device)

    def extend(self, extension: Extension) -> None:
        injected = self._inject(extension.features.tapped)
        table = self._table.at(extension.positions)
        for layer, store in zip(self._layers, self.slots, strict=True):
            pair = torch.stack(layer.self_attn.keys_values(injected, table), dim=1)
            store.write(extension.rows, extension.positions, pair)

    def begin(self, anchors: Anchors) -> BlockState:
        # The whole block, as in training, also when fewer are drafted.
        positions = anchors.positions[:, None] + torch.arange(self.width, device=anchors.positions.device)
        x = self._block_input(anchors.tokens)
        table = self._table.at(positions)
        mask = self._context_mask(anchors, x.dtype) if len(anchors.slots) > 1 else None
        rows, flat = anchors.slots.repeat_interleave(self.width), positions.flatten()
        length = anchors.max_position + self.width
        where = anchors.slots if anchors.slot_range is None else anchors.slot_range
        for layer, store in zip(self._layers, self.slots, strict=True):

            def attend(query: Tensor, keys: Tensor, values: Tensor, store: SlotStore = store) -> Tensor:
                # The block lies where its committed tokens will, until ``extend`` replaces it.
                store.write(rows, flat, torch.stack([keys, values], dim=2).flatten(0, 1))
                both = store.read(where, length)
                return grouped_attention(query, both[:, :, 0], both[:, :, 1], mask)

            x = layer(x, table, attend)
        return BlockState(hidden=self.norm(x[:, self.num_idle :]))

    def step(self, state: BlockState, k: int, previous: Tensor) -> Tensor:
        return state.hidden[:, k]

    def parallel_hidden(self, state: BlockState) -> Tensor | None:
        return state.hidden

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        grid = AnchorGrid.of(anchors, len(batch.tokens))
        injected = self._inject(features.tapped)
        context_table = rotary_table(batch.positions, self._rope, injected.dtype)
        x = self._block_input(batch.tokens[anchors.rows, anchors.columns])
        steps = torch.arange(self.width, device=x.device)
        positions = batch.positions[anchors.rows, anchors.columns][:, None] + steps
        x, positions = grid.scatter(x).flatten(1, 2), grid.scatter(positions).flatten(1, 2)
        mask = attention_mask(self._seen(batch, grid), self._layers[0].self_attn.heads_per_kv, x.dtype)
        table = rotary_table(positions, self._rope, x.dtype)
        for layer in self._layers:
            context = layer.self_attn.keys_values(injected, context_table)

            def attend(
                query: Tensor, keys: Tensor, values: Tensor, context: tuple[Tensor, Tensor] = context
            ) -> Tensor:
                keys, values = torch.cat([context[0], keys], dim=1), torch.cat([context[1], values], dim=1)
                return grouped_attention(query, keys, values, mask)

            x = layer(x, table, attend)
        drafted = x.unflatten(1, (grid.width, self.width))[:, :, self.num_idle :]
        return grid.gather(self.norm(drafted))

    def release(self, slot: int) -> None:
        """Nothing to do: a slot's next request overwrites it."""

    def _context_mask(self, anchors: Anchors, dtype: torch.dtype) -> Tensor:
        """What lies before each block's end."""
        ends = anchors.positions[:, None] + self.width
        seen = torch.arange(anchors.max_position + self.width, device=ends.device) < ends
        heads = self._layers[0].self_attn.heads_per_kv * self.width  # all slots of a block see the same
        return attention_mask(seen[:, None], heads, dtype)

    def _seen(self, batch: TokenBatch, grid: AnchorGrid) -> Tensor:
        """Bool ``[S, Q, L + Q]``, Q slots a row: its context, and its own block."""
        context = grid.context(batch).repeat_interleave(self.width, dim=1)
        block = torch.arange(grid.width * self.width, device=context.device) // self.width
        own = (block[:, None] == block).expand(grid.num_rows, -1, -1)
        return torch.cat([context, own], dim=-1)

    def _inject(self, tapped: Tensor) -> Tensor:
        return self.hidden_norm(self.fc(tapped.to(self.fc.weight.dtype)))

    def _block_input(self, tokens: Tensor) -> Tensor:
        """Embeddings of [anchor, mask, mask, ...]: ``[N, slots, H]``."""
        block = torch.full((len(tokens), self.width), self.mask_token_id, device=tokens.device)
        block[:, 0] = tokens
        return embedding(block, self.info.embedding).to(self.fc.weight.dtype) * self.info.embedding_scale


def _mask_token(config: DFlashConfig, context: BuildContext) -> int:
    chosen = context.target.mask_token_id if config.mask_token_id is None else config.mask_token_id
    if chosen is None:
        raise ConfigError(
            "the target has no spare token id for masks; give one with --set drafter.mask_token_id=ID"
        )
    if not 0 <= chosen < context.target.vocab_size:
        limit = context.target.vocab_size - 1
        raise ConfigError(
            f"drafter.mask_token_id is {chosen}; allowed are 0..{limit}, an id that real text never uses"
        )
    return chosen
