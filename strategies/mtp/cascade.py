"""Distinct modules in a chain, one for each draft position: module d predicts d + 1 tokens ahead.

Module d (from 1) at position i reads h^{d-1}_i, the state of the module before it (of the target for d = 1),
and token i + d; it is causal over its own keys and values (DeepSeek-V3, 2412.19437, section 2.2). Here a
module's rows are counted by the token they read: row p reads token p + 1 and, from the second module on, the
row before of the module before. So all modules share tokens, rows and rotary positions, which attention knows
only by their differences. Rows before a text's first position read zeros, in training as in decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.nn import (
    Attend,
    RaggedRows,
    RotaryTable,
    SlotStore,
    Unroll,
    attention_mask,
    causal,
    grouped_attention,
    last_rows,
    rotary_table,
)
from deepspec.types import AnchorBlocks, Anchors, Extension, TokenBatch


@dataclass(frozen=True)
class Cascade:
    """Two modules or more, each a stack that runs once; ``feeds_back_normed`` says what they hand on."""

    modules: tuple[Unroll, ...]

    def allocate(
        self, num_slots: int, num_rows: int, *, dtype: torch.dtype, device: torch.device
    ) -> CascadeSlots:
        """Room for that many requests of that many rows, drafted ones included."""
        return CascadeSlots(self, num_slots, num_rows, dtype=dtype, device=device)

    def block(self, batch: TokenBatch, features: Tensor, anchors: AnchorBlocks) -> Tensor:
        """Training: normed hidden states ``[N, G, H]``, each module in one causal pass over ``[S, L, H]``."""
        attention = self.modules[0].layers[0].self_attn
        mask = attention_mask(causal(batch), attention.heads_per_kv, features.dtype)
        following = batch.tokens.roll(-1, dims=1)
        table = rotary_table(batch.positions, self.modules[0].rope, features.dtype)
        is_first = (batch.positions == 0)[..., None]

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return grouped_attention(query, keys, values, mask)

        outputs = []
        hidden = features
        for k, module in enumerate(self.modules):
            x = module.run(following, hidden, table, [attend])
            columns = (anchors.columns - 1 + k).clamp(min=0, max=batch.tokens.shape[1] - 1)
            outputs.append(module.norm(x[anchors.rows, columns]))
            hidden = _handed_on(module, x).roll(1, dims=1).masked_fill(is_first, 0.0)
        return torch.stack(outputs, dim=1)


class CascadeSlots:
    """The committed rows of all requests: each module's keys and values, and what its last row hands on."""

    def __init__(
        self, cascade: Cascade, num_slots: int, num_rows: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._modules = cascade.modules
        first = cascade.modules[0]
        attention = first.layers[0].self_attn
        shape = (2, attention.num_kv_heads, attention.head_dim)  # keys and values
        self._stores = [
            SlotStore(num_slots, num_rows, shape, dtype=dtype, device=device) for _ in self._modules
        ]
        sizes = (len(self._modules) - 1, num_slots, len(first.norm.weight))
        self._carried = torch.zeros(sizes, dtype=dtype, device=device)
        self._table = RotaryTable(num_rows, first.rope, dtype=dtype, device=device)

    def extend(self, extension: Extension, features: Tensor) -> None:
        """Take in committed rows with their features ``[T, H]``; each module redoes its drafted rows."""
        heads = self._modules[0].layers[0].self_attn.heads_per_kv
        rows = RaggedRows(extension, heads_per_kv=heads, dtype=features.dtype)
        table = self._table.at(extension.positions)
        ends = last_rows(extension)
        starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1] + 1])
        is_new = torch.tensor([span.start == 0 for span in extension.spans], device=ends.device)[:, None]
        hidden = features
        for module, store, carried in zip(self._modules, self._stores, self._carried, strict=False):
            x = module.run(extension.next_tokens, hidden, table, [rows.attend(store)])
            handed = _handed_on(module, x)
            before = carried[extension.slots].masked_fill(is_new, 0.0)
            hidden = handed.roll(1, dims=0).index_copy(0, starts, before)
            carried.index_copy_(0, extension.slots, handed[ends])
        pair = self._modules[-1].fill(extension.next_tokens, hidden, table, [])
        self._stores[-1].write(extension.rows, extension.positions, torch.stack(pair, dim=1))

    def begin(self, anchors: Anchors) -> CascadeRound:
        """Start a round; drafted rows lie where committed ones will, until :meth:`extend` replaces them."""
        where = anchors.slots if anchors.slot_range is None else anchors.slot_range
        num_rows = anchors.max_position + anchors.num_draft - 1
        rows = anchors.positions[:, None] + torch.arange(
            anchors.num_draft - 1, device=anchors.positions.device
        )
        carried = self._carried[:, where]
        return CascadeRound(
            modules=self._modules,
            carried=carried,
            handed=carried[0, :, None][:, :0],
            tokens=anchors.tokens[:, None][:, :0],
            windows=[store.read(where, num_rows) for store in self._stores[: anchors.num_draft]],
            rows=rows,
            last_row=anchors.max_position - 1,
            tables=self._table.at(rows),
        )


@dataclass
class CascadeRound:
    """One round of R requests. Step k runs module k + 1 over k rows: those that the drafted tokens complete.

    Attributes:
        carried: ``[modules - 1, R, H]``, what each module's last committed row hands on.
        handed: ``[R, k - 1, H]``, what the step before handed on. tokens: int64 ``[R, k]``, drafted so far.
        windows: of each module ``[R, rows, 2, kv heads, d]``, a view of the slots or a copy.
        rows: int64 ``[R, G - 1]``, where drafted tokens go. last_row: the largest row before them, host side.
        tables: rotary, ``[R, G - 1, 1, d]``.
    """

    modules: tuple[Unroll, ...]
    carried: Tensor
    handed: Tensor
    tokens: Tensor
    windows: list[Tensor]
    rows: Tensor
    last_row: int
    tables: tuple[Tensor, Tensor]

    def step(self, k: int, previous: Tensor) -> Tensor:
        """Normed hidden states ``[R, H]`` of 0-based step k, given tokens ``[R]``."""
        module = self.modules[k]
        if k == 0:
            first = self.carried[0]
            return first if module.feeds_back_normed else module.norm(first)
        self.tokens = torch.cat([self.tokens, previous[:, None]], dim=1)
        hidden = torch.cat([self.carried[k - 1][:, None], self.handed], dim=1)
        cos, sin = self.tables
        x = module.run(self.tokens, hidden, (cos[:, :k], sin[:, :k]), [self._attend(k)])
        self.handed = _handed_on(module, x)
        return module.norm(x[:, -1])

    def _attend(self, k: int) -> Attend:
        window, rows = self.windows[k], self.rows[:, :k]
        num_keys = self.last_row + 1 + k

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            every = torch.arange(len(rows), device=rows.device)[:, None]
            window[every, rows] = torch.stack([keys, values], dim=2)
            seen = torch.arange(num_keys, device=rows.device) <= rows[..., None]
            heads = self.modules[0].layers[0].self_attn.heads_per_kv
            mask = attention_mask(seen, heads, query.dtype)
            return grouped_attention(query, window[:, :num_keys, 0], window[:, :num_keys, 1], mask)

        return attend


def _handed_on(module: Unroll, x: Tensor) -> Tensor:
    return module.norm(x) if module.feeds_back_normed else x
