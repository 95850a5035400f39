"""Attention of committed rows, packed request after request, over each request's stored keys and values.

Requests bring different numbers of rows. Neighbours with few rows are padded to one length and share a
call, a long one (a chunk of a prompt) has its own, so that padding stays small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.nn.attention import Attend, attention_mask, grouped_attention
from deepspec.nn.slots import SlotStore
from deepspec.types import Extension, Span, as_range

_FEW_ROWS = 32  # requests up to this many rows share a padded call


@dataclass(frozen=True)
class _Run:
    """Neighbouring spans that share a call.

    Attributes:
        start, stop: their packed rows. num_spans, num_queries, num_keys: n, Q and L of the call.
        slots: of the spans.
        padded: int64 ``[n * Q]``, the run's row in each cell, and ``real``, each row's cell; None when all
            spans are equally long.
        mask: of the call, None when it is plainly causal.
    """

    start: int
    stop: int
    num_spans: int
    num_queries: int
    num_keys: int
    slots: slice | Tensor
    padded: Tensor | None
    real: Tensor | None
    mask: Tensor | None

    def attend(self, query: Tensor, store: SlotStore) -> Tensor:
        """``[rows, heads, d]`` of the run to the same."""
        cells = query if self.padded is None else query[self.padded]
        cells = cells.unflatten(0, (self.num_spans, self.num_queries))
        both = store.read(self.slots, self.num_keys)
        causal = self.mask is None
        out = grouped_attention(cells, both[:, :, 0], both[:, :, 1], self.mask, is_causal=causal).flatten(
            0, 1
        )
        return out if self.real is None else out[self.real]


class RaggedRows:
    """The rows of one extension, prepared for attention.

    Args:
        heads_per_kv: query heads that share a key/value head. dtype: of the queries.
    """

    def __init__(self, extension: Extension, *, heads_per_kv: int, dtype: torch.dtype) -> None:
        self._extension = extension
        self._runs = []
        start = 0
        for spans in _neighbours(extension.spans):
            stop = start + sum(span.length for span in spans)
            positions = extension.positions[start:stop]
            self._runs.append(_run(spans, start, positions, heads_per_kv, dtype))
            start = stop

    def attend(self, store: SlotStore) -> Attend:
        """Write keys and values ``[T, kv heads, d]`` to ``store``, and attend to all up to each row's own."""

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            store.write(self._extension.rows, self._extension.positions, torch.stack([keys, values], dim=1))
            outs = [run.attend(query[run.start : run.stop], store) for run in self._runs]
            return outs[0] if len(outs) == 1 else torch.cat(outs)

        return attend


def last_rows(extension: Extension) -> Tensor:
    """int64 ``[R]``, the last packed row of every request."""
    lengths = torch.tensor([span.length for span in extension.spans], device=extension.rows.device)
    return lengths.cumsum(0) - 1


def _neighbours(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Runs of spans with few rows, and every other span alone."""
    run: list[Span] = []
    for span in spans:
        if run and (span.length > _FEW_ROWS or run[-1].length > _FEW_ROWS):
            yield run
            run = []
        run.append(span)
    yield run


def _run(spans: list[Span], start: int, positions: Tensor, heads_per_kv: int, dtype: torch.dtype) -> _Run:
    most = max(span.length for span in spans)
    is_uniform = all(span.length == most for span in spans)
    num_keys = max(span.start + span.length for span in spans)
    padded = real = mask = None
    if not is_uniform:
        lengths = torch.tensor([span.length for span in spans], device=positions.device)[:, None]
        steps = torch.arange(most, device=positions.device)
        first = lengths.cumsum(0) - lengths
        padded = (first + steps.minimum(lengths - 1)).flatten()
        cells = [n * most + i for n, span in enumerate(spans) for i in range(span.length)]
        real = torch.tensor(cells, device=positions.device)
        positions = positions[padded]
    if not is_uniform or any(span.start > 0 for span in spans):
        own = positions.view(len(spans), most, 1)
        mask = attention_mask(torch.arange(num_keys, device=own.device) <= own, heads_per_kv, dtype)
    slots = [span.slot for span in spans]
    ranged = as_range(slots)
    return _Run(
        start=start,
        stop=start + sum(span.length for span in spans),
        num_spans=len(spans),
        num_queries=most,
        num_keys=num_keys,
        slots=torch.tensor(slots, device=positions.device) if ranged is None else ranged,
        padded=padded,
        real=real,
        mask=mask,
    )
