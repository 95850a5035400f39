"""Autoregressive drafting from target features: true features first, then the drafter's own hidden states.

Row i pairs the feature of position i with token i + 1, sits at rotary position i and predicts token i + 2.
A first pass over all rows gives their keys and values (EAGLE-3, 2503.01840). The unroll starts from the
anchor's row, the last with a feature, and goes on one row further each step with the hidden state of the
step before in place of the feature. In training every anchor unrolls by itself: a step attends to first-pass
keys up to the anchor's row and to its own steps after the first ("training-time test"), as decoding does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.context import Rope
from deepspec.nn.anchor_grid import AnchorGrid, causal
from deepspec.nn.attention import Attend, DecoderLayer, Table, attention_mask, grouped_attention
from deepspec.nn.blocks import RMSNorm, RotaryTable, additive_mask, rotary_table
from deepspec.nn.ragged import RaggedRows, last_rows
from deepspec.nn.slots import SlotStore
from deepspec.types import AnchorBlocks, Anchors, Extension, TokenBatch

#: Tokens ``[...]`` and features or hidden states ``[..., H]`` to the first layer's residual stream
#: ``[..., H]`` and to what its attention reads.
Enter = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Unroll:
    """A stack of layers to unroll.

    Attributes:
        enter: how a token and a feature, or the hidden state in its place, go in.
        layers: with attention of one shape and the same rotary positions. norm: the final norm.
        feeds_back_normed: whether a step hands on its hidden state after the final norm, or before it.
    """

    enter: Enter
    layers: tuple[DecoderLayer, ...]
    norm: RMSNorm
    feeds_back_normed: bool

    @property
    def rope(self) -> Rope:
        """The layers' rotary positions."""
        return self.layers[0].self_attn.config.rope

    def allocate(
        self, num_slots: int, num_rows: int, *, dtype: torch.dtype, device: torch.device
    ) -> UnrolledSlots:
        """Room for that many requests of that many rows, drafted ones included."""
        attention = self.layers[0].self_attn
        shape = (2, attention.num_kv_heads, attention.head_dim)  # keys and values
        return UnrolledSlots(
            self,
            stores=[SlotStore(num_slots, num_rows, shape, dtype=dtype, device=device) for _ in self.layers],
            starts=torch.zeros((num_slots, len(self.norm.weight)), dtype=dtype, device=device),
            table=RotaryTable(num_rows, self.rope, dtype=dtype, device=device),
        )

    def block(self, batch: TokenBatch, features: Tensor, anchors: AnchorBlocks) -> Tensor:
        """Training: normed hidden states ``[N, G, H]`` of all anchors' unrolls.

        Args:
            features: ``[S, L, H]``, as ``enter`` takes them; those before an anchor are read for it. One that
                begins its document has none, and its hidden states mean nothing.
        """
        grid = AnchorGrid.of(anchors, len(batch.tokens))
        contexts = self._first_pass(batch, features)
        hidden = grid.scatter(features[anchors.rows, (anchors.columns - 1).clamp(min=0)])
        tokens = grid.scatter(anchors.previous)
        rows = grid.scatter(batch.positions[anchors.rows, anchors.columns] - 1)
        mask = self._unroll_mask(batch, grid, tokens.shape[-1], hidden.dtype)
        outputs = []
        for k, column in enumerate(tokens.unbind(-1)):
            table = self._table(rows + k, hidden.dtype)
            attends = [context.attend(mask, is_first=k == 0) for context in contexts]
            x = self.run(column, hidden, table, attends)
            normed = self.norm(x)
            outputs.append(grid.gather(normed))
            hidden = normed if self.feeds_back_normed else x
        return torch.stack(outputs, dim=1)

    def run(self, tokens: Tensor, hidden: Tensor, table: Table, attends: Sequence[Attend]) -> Tensor:
        """One pass through all layers: ``[...]`` and ``[..., H]`` to ``[..., H]`` before the final norm."""
        x, read = self._below(tokens, hidden, table, attends)
        return self.layers[-1](x, table, attends[-1], read)

    def fill(
        self, tokens: Tensor, features: Tensor, table: Table, attends: Sequence[Attend]
    ) -> tuple[Tensor, Tensor]:
        """A first pass; of the last layer only keys and values are wanted, and returned."""
        _, read = self._below(tokens, features, table, attends)
        return self.layers[-1].self_attn.keys_values(read, table)

    def _below(
        self, tokens: Tensor, hidden: Tensor, table: Table, attends: Sequence[Attend]
    ) -> tuple[Tensor, Tensor]:
        """Residual stream and attention's input of the last layer."""
        x, read = self.enter(tokens, hidden)
        for layer, following, attend in zip(self.layers, self.layers[1:], attends, strict=False):
            x = layer(x, table, attend, read)
            read = following.input_layernorm(x)
        return x, read

    def _first_pass(self, batch: TokenBatch, features: Tensor) -> list[_Context]:
        """Every layer's keys and values of all rows."""
        below = self.layers[:-1]
        mask = None
        if below:
            mask = attention_mask(causal(batch), self.layers[0].self_attn.heads_per_kv, features.dtype)
        contexts = [_Context() for _ in below]
        following = batch.tokens.roll(-1, dims=1)  # wrong for a document's last row, which no anchor sees
        table = self._table(batch.positions, features.dtype)
        pair = self.fill(following, features, table, [context.first(mask) for context in contexts])
        return [*contexts, _Context((pair,))]

    def _unroll_mask(self, batch: TokenBatch, grid: AnchorGrid, num_draft: int, dtype: torch.dtype) -> Tensor:
        """For each cell the context before its anchor, then its own place in every later step."""
        context = grid.context(batch)
        # Without anything to see a softmax is not a number, which gradients would spread: look at column 0.
        context[..., 0] |= ~context.any(dim=-1)
        own = torch.eye(grid.width, dtype=torch.bool, device=context.device).repeat(1, num_draft - 1)
        seen = torch.cat([context, own.expand(grid.num_rows, -1, -1)], dim=-1)
        return attention_mask(seen, self.layers[0].self_attn.heads_per_kv, dtype)

    def _table(self, positions: Tensor, dtype: torch.dtype) -> Table:
        return rotary_table(positions, self.rope, dtype)


@dataclass
class _Context:
    """A layer's keys and values ``[S, L, kv heads, d]``, and behind them ``[S, width, ...]`` of each step.

    Each of its attentions knows what was there before it, since a layer may be computed once more.
    """

    pairs: tuple[tuple[Tensor, Tensor], ...] = ()

    def first(self, mask: Tensor | None) -> Attend:
        """Attention of the first pass, whose rows become the context."""

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.pairs = ((keys, values),)
            return grouped_attention(query, keys, values, mask)

        return attend

    def attend(self, mask: Tensor, *, is_first: bool) -> Attend:
        """Attention of a step's cells; rows of the first step are among the context already."""
        before = self.pairs

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            pairs = self.pairs = before if is_first else (*before, (keys, values))
            seen, read = (torch.cat(some, dim=1) for some in zip(*pairs, strict=True))
            return grouped_attention(query, seen, read, mask[..., : seen.shape[1]])

        return attend


class UnrolledSlots:
    """The committed rows of all requests: keys and values of each layer, and the feature of the last row."""

    def __init__(self, unroll: Unroll, stores: list[SlotStore], starts: Tensor, table: RotaryTable) -> None:
        self._unroll, self._stores, self._starts, self._table = unroll, stores, starts, table

    def extend(self, extension: Extension, features: Tensor) -> None:
        """Take in committed rows with their features ``[T, H]``."""
        attends = []
        if len(self._stores) > 1:
            heads = self._unroll.layers[0].self_attn.heads_per_kv
            rows = RaggedRows(extension, heads_per_kv=heads, dtype=features.dtype)
            attends = [rows.attend(store) for store in self._stores[:-1]]
        table = self._table.at(extension.positions)
        pair = self._unroll.fill(extension.next_tokens, features, table, attends)
        self._stores[-1].write(extension.rows, extension.positions, torch.stack(pair, dim=1))
        self._starts.index_copy_(0, extension.slots, features[last_rows(extension)])

    def begin(self, anchors: Anchors) -> UnrolledRound:
        """Start a round; a draft row lies where its committed one will, until :meth:`extend` replaces it."""
        where = anchors.slots if anchors.slot_range is None else anchors.slot_range
        num_rows = anchors.max_position - 1 + anchors.num_draft
        rows = anchors.positions - 1
        mask = None
        if len(anchors.spans) > 1:
            before = torch.arange(num_rows, device=rows.device) < rows[:, None]
            mask = additive_mask(before, self._starts.dtype)
        steps = torch.arange(anchors.num_draft, device=rows.device)
        return UnrolledRound(
            unroll=self._unroll,
            hidden=self._starts[where],
            windows=[store.read(where, num_rows) for store in self._stores],
            rows=rows,
            first_row=anchors.spans[0].start - 1,
            tables=self._table.at(rows[:, None] + steps),
            mask=mask,
        )


@dataclass
class UnrolledRound:
    """One round of R requests.

    Attributes:
        hidden: ``[R, H]``, what the next step reads in place of a feature.
        windows: of each layer ``[R, rows, 2, kv heads, d]``, a view of the slots or a copy.
        rows: int64 ``[R]``, the rows of step 0. first_row: of the first request, host side.
        tables: rotary, ``[R, G, 1, d]``.
        mask: additive ``[R, rows]``, what is seen so far; None for a single request.
    """

    unroll: Unroll
    hidden: Tensor
    windows: list[Tensor]
    rows: Tensor
    first_row: int
    tables: Table
    mask: Tensor | None

    def step(self, k: int, previous: Tensor) -> Tensor:
        """Normed hidden states ``[R, H]`` of 0-based step k, given tokens ``[R]``."""
        cos, sin = self.tables
        attends = [self._attend(window, k) for window in self.windows]
        if self.mask is not None:
            self.mask.scatter_(1, (self.rows + k)[:, None], 0.0)
        x = self.unroll.run(previous, self.hidden, (cos[:, k], sin[:, k]), attends)
        normed = self.unroll.norm(x)
        self.hidden = normed if self.unroll.feeds_back_normed else x
        return normed

    def _attend(self, window: Tensor, k: int) -> Attend:
        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            pair = torch.stack([keys, values], dim=1)
            if self.mask is None:
                row = self.first_row + k
                window[:, row] = pair
                seen, mask = window[:, : row + 1], None
            else:
                window[torch.arange(len(pair), device=pair.device), self.rows + k] = pair
                heads = self.unroll.layers[0].self_attn.heads_per_kv
                seen, mask = window, self.mask[:, None, None].expand(-1, 1, heads, -1)
            return grouped_attention(query[:, None], seen[:, :, 0], seen[:, :, 1], mask)[:, 0]

        return attend
