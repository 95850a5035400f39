"""Attention over packed rows: one ``[1, T]`` row for all requests of a step, over per-request KV slots.

Linear layers of an unmodified Hugging Face decoder see one big matrix; only attention knows requests.
``plan_step`` groups the step's spans by like length on the host, once; every layer then makes one padded
attention call a group. Rolling back is forgetting a length: rows past it are overwritten later. The plan
travels to the attention function as a keyword argument of the model's forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from deepspec.nn import additive_mask
from deepspec.target.kv_slots import KVSlots
from deepspec.target.recurrent import Wave
from deepspec.types import Span, as_range

ATTENTION_NAME = "deepspec_packed"
_DECODE_ROWS = 32  # spans up to this many rows share one padded call
_FIRST_BUCKET = 256  # KV lengths are grouped by powers of two from here on


def span_rows(spans: Sequence[Span]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Slot and absolute position of every packed token, int64 ``[T]`` each."""
    slots, starts, counts = np.array(spans, dtype=np.int64).T
    ends = counts.cumsum()
    offsets = np.repeat(starts - (ends - counts), counts)
    return np.repeat(slots, counts), offsets + np.arange(ends[-1])


@dataclass(frozen=True)
class Group:
    """Spans that share a padded attention call.

    Attributes:
        rows: packed rows, a slice when they are consecutive and of equal length, else int64 ``[n, Q]``.
        slots: KV slots. num_spans, num_queries, num_keys: n, Q and L of the call.
        starts: absolute position of each span's first query.
        real: for ragged groups, where the real rows lie in the packed row and in the padded ``[n * Q]`` one.
        causal: whether plain causal masking is right (every span starts at 0).
    """

    rows: slice | Tensor
    slots: slice | Tensor
    num_spans: int
    num_queries: int
    num_keys: int
    starts: tuple[int, ...]
    real: tuple[Tensor, Tensor] | None
    causal: bool

    def take(self, packed: Tensor) -> Tensor:
        """The group's ``[n, Q, ...]`` of packed rows ``[T, ...]``."""
        rows = packed[self.rows]
        return rows.unflatten(0, (self.num_spans, self.num_queries)) if isinstance(self.rows, slice) else rows


class PackedPlan:
    """One step's groups, where its keys live, and its masks (made once for each window size).

    ``waves`` is what recurrent layers do in it.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        cache: KVSlots | None,
        num_rows: int,
        device: torch.device,
        waves: tuple[Wave, ...],
    ) -> None:
        self._device = device
        self.groups = groups
        self.cache = cache
        self.waves = waves
        self.num_rows = num_rows
        self._masks: dict[tuple[int, int | None, int, torch.dtype], Tensor | None] = {}

    def mask(self, number: int, window: int | None, repeats: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[n, 1, repeats * Q, L]`` of a group, or None when nothing is masked."""
        key = (number, window, repeats, dtype)
        if key not in self._masks:
            self._masks[key] = _additive_mask(self.groups[number], window, repeats, dtype, self._device)
        return self._masks[key]


def plan_step(
    spans: Sequence[Span],
    device: torch.device,
    cache: KVSlots | None,
    *,
    is_recurrent: bool = False,
    is_settled: bool = True,
) -> PackedPlan:
    """Group the step's spans; ``spans`` lie one after the other in the packed row.

    Args:
        is_recurrent: whether some layers keep a recurrent state. is_settled: see :class:`RecurrentSlots`.
    """
    offsets = []
    total = 0
    for span in spans:
        offsets.append(total)
        total += span.length
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, span in enumerate(spans):
        if cache is not None and span.length <= _DECODE_ROWS:
            key: tuple[int, ...] = (max(_FIRST_BUCKET, span.start + span.length - 1).bit_length(),)
        else:
            key = (span.start, span.length, -1)
        buckets[key].append(number)
    groups = tuple(
        _make_group([(spans[i], offsets[i]) for i in members], device) for members in buckets.values()
    )
    waves: tuple[Wave, ...] = ()
    if is_recurrent and cache is not None:
        waves = cache.recurrent.plan(spans, device, is_settled=is_settled)
    return PackedPlan(groups, cache, total, device, waves)


def _make_group(members: list[tuple[Span, int]], device: torch.device) -> Group:
    spans = [span for span, _ in members]
    most = max(span.length for span in spans)
    uniform = all(span.length == most for span in spans)
    first = members[0][1]
    consecutive = uniform and all(offset == first + i * most for i, (_, offset) in enumerate(members))
    rows: slice | Tensor = slice(first, first + most * len(spans))
    real = None
    if not consecutive:
        steps = torch.arange(most, device=device)
        last = torch.tensor([offset + span.length - 1 for span, offset in members], device=device)[:, None]
        offsets = torch.tensor([offset for _, offset in members], device=device)[:, None]
        rows = (offsets + steps).minimum(last)
        real = _real_rows(members, most, device)
    slots = [span.slot for span in spans]
    ranged = as_range(slots)
    return Group(
        rows=rows,
        slots=torch.tensor(slots, device=device) if ranged is None else ranged,
        num_spans=len(spans),
        num_queries=most,
        num_keys=max(span.start + span.length for span in spans),
        starts=tuple(span.start for span in spans),
        real=real,
        causal=all(span.start == 0 for span in spans) and uniform,
    )


def _real_rows(members: list[tuple[Span, int]], most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    packed = [offset + i for span, offset in members for i in range(span.length)]
    padded = [n * most + i for n, (span, _) in enumerate(members) for i in range(span.length)]
    return torch.tensor(packed, device=device), torch.tensor(padded, device=device)


def _additive_mask(
    group: Group, window: int | None, repeats: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    single = group.num_queries == 1 and group.num_spans == 1
    if single and _window_is_wide(group, window):
        return None
    keys = torch.arange(group.num_keys, device=device)
    first = torch.tensor(group.starts, device=device)[:, None, None]
    positions = first + torch.arange(group.num_queries, device=device)[:, None]
    seen = keys <= positions
    if window is not None:
        seen &= keys > positions - window
    return additive_mask(seen, dtype).repeat(1, repeats, 1)[:, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: PackedPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query [1, heads, T, d]`` over each request's own keys; returns ``[1, T, heads, d]``."""
    if packed is None:
        raise ValueError(f"attention {ATTENTION_NAME!r} needs the step's plan; call the model through Target")
    sinks = getattr(module, "sinks", None)
    expand = getattr(module, "expand_kv", None)  # of latents, which are what is cached
    results = []
    for number, group in enumerate(packed.groups):
        if packed.cache is None:
            keys, values = _grouped(key, group), _grouped(value, group)
        else:
            layer = packed.cache.layer_of(_layer_index(module), key)
            keys, values = packed.cache.read(layer, group.slots, group.num_keys)
            if expand is not None:
                keys, values = expand(keys, values)
        queries = _grouped(query, group)
        repeats = query.shape[1] // keys.shape[1]
        if softcap is None and sinks is None and group.causal and _window_is_wide(group, sliding_window):
            result = scaled_dot_product_attention(
                queries, keys, values, is_causal=group.num_queries > 1, scale=scaling, enable_gqa=repeats > 1
            )
        else:
            folded = queries.reshape(group.num_spans, keys.shape[1], repeats * group.num_queries, -1)
            mask = packed.mask(number, sliding_window, repeats, query.dtype)
            folded = _attend(folded, keys, values, mask, scaling or query.shape[3] ** -0.5, softcap, sinks)
            result = folded.reshape(queries.shape[:3] + values.shape[3:])
        results.append(result.transpose(1, 2))
    return _packed(results, packed), None


def _layer_index(module: nn.Module) -> int:
    index = module.layer_idx
    if not isinstance(index, int):
        raise TypeError(f"{type(module).__name__}.layer_idx is {index!r}; expected a number")
    return index


def _window_is_wide(group: Group, window: int | None) -> bool:
    """Whether a sliding window masks nothing in this group."""
    return window is None or group.num_keys <= window


def _grouped(rows: Tensor, group: Group) -> Tensor:
    """Packed rows ``[1, heads, T, d]`` as the group's ``[n, heads, Q, d]``."""
    if group.num_queries == rows.shape[2]:
        return rows
    if not isinstance(group.rows, slice):
        return rows[0][:, group.rows].transpose(0, 1)
    return rows[0, :, group.rows].unflatten(1, (group.num_spans, group.num_queries)).transpose(0, 1)


def _packed(results: list[Tensor], plan: PackedPlan) -> Tensor:
    """The groups' ``[n, Q, heads, d]`` back as packed rows ``[1, T, heads, d]``."""
    if len(results) == 1 and isinstance(plan.groups[0].rows, slice):
        return results[0].reshape(1, plan.num_rows, *results[0].shape[2:])
    out = results[0].new_empty((plan.num_rows, *results[0].shape[2:]))
    for group, result in zip(plan.groups, results, strict=True):
        if isinstance(group.rows, slice):
            out[group.rows] = result.flatten(0, 1)
        elif group.real is not None:
            out[group.real[0]] = result.flatten(0, 1)[group.real[1]]
    return out[None]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Masked attention; SDPA unless a soft-cap or sinks are asked for, which it has no argument for."""
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        return scores.softmax(dim=-1) @ value
    repeats = sinks.numel() // key.shape[1]
    column = sinks.view(1, key.shape[1], repeats, 1).expand(len(query), -1, -1, query.shape[2] // repeats)
    joined = torch.cat([scores, column.flatten(2, 3)[..., None].to(scores.dtype)], dim=-1)
    return pad(joined.softmax(dim=-1), (0, -1)) @ value


AttentionInterface.register(ATTENTION_NAME, packed_attention)
