"""Layers that keep a recurrent state instead of keys and values (gated delta nets), over packed rows.

A state cannot be cut back, so each request has two in every such layer: the running one, behind the last row
that went through, and the settled one, at the start of the last block of rows, whose inputs are kept. A block
that starts at the running state's end goes on from it; one that starts earlier first replays the accepted
rows from the settled one. The layer's own code runs, once for all spans of a length: a step has a call for
each different length and for each different number of accepted rows, and no loop over requests or positions.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepspec.errors import TargetError
from deepspec.types import Span

if TYPE_CHECKING:
    from deepspec.target.packed import PackedPlan

#: The longest block that can be rolled back into; longer ones are prompts.
MOST_ROWS_BACK = 64
#: What a layer keeps: ``conv`` or ``recurrent``, and the layer's own number of the state.
StateKey = tuple[str, int]


@dataclass(frozen=True)
class Batch:
    """Spans of one length that go through a layer together.

    Attributes:
        slots: int64 ``[n]``. length: Q.
        rows: int64 ``[n * Q]``, packed rows of the step; when replaying, rows of the kept inputs.
        kept: int64 ``[n * Q]``, where the inputs are kept, None when they are not.
    """

    slots: Tensor
    length: int
    rows: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Wave:
    """Spans of different requests, and what brings their running states to where they start.

    Attributes:
        fresh, restored, settled: int64 slots that begin anew, that go back to the settled state, and whose
            running state then becomes the settled one. ``restored`` ones replay rows after that.
        replays, runs: what goes through. passed: slots whose state is settled behind the block.
    """

    fresh: Tensor
    restored: Tensor
    replays: tuple[Batch, ...]
    settled: Tensor
    runs: tuple[Batch, ...]
    passed: Tensor


class RecurrentSlots:
    """The states of ``num_slots`` requests in all recurrent layers; positions are known on the host."""

    def __init__(self, num_slots: int, name: str) -> None:
        self._name = name
        self._settled, self._running = [0] * num_slots, [0] * num_slots
        self._layers: dict[int, _LayerStates] = defaultdict(lambda: _LayerStates(num_slots))

    def plan(self, spans: Sequence[Span], device: torch.device, *, is_settled: bool) -> tuple[Wave, ...]:
        """What a forward of ``spans`` has to do in each layer; the forward must follow.

        Args:
            is_settled: whether all that comes before the spans is final.

        Raises:
            TargetError: a span that starts where no state is known.
        """
        waves: list[list[tuple[Span, int]]] = []
        seen: dict[int, int] = defaultdict(int)
        offset = 0
        for span in spans:
            if seen[span.slot] == len(waves):
                waves.append([])
            waves[seen[span.slot]].append((span, offset))
            seen[span.slot] += 1
            offset += span.length
        return tuple(self._plan_wave(wave, device, is_settled) for wave in waves)

    def _plan_wave(self, members: list[tuple[Span, int]], device: torch.device, is_settled: bool) -> Wave:
        fresh, restored, settled, passed = [], [], [], []
        replays: dict[int, list[tuple[int, int, int | None]]] = defaultdict(list)
        runs: dict[tuple[int, bool], list[tuple[int, int, int | None]]] = defaultdict(list)
        for span, first_row in members:
            slot, start = span.slot, span.start
            if start == 0:
                fresh.append(slot)
                self._settled[slot] = 0
            elif start != self._running[slot]:
                back = start - self._settled[slot]
                self._check(span, back)
                restored.append(slot)
                if back > 0:
                    replays[back].append((slot, slot * MOST_ROWS_BACK, None))
            if is_settled or start == 0:
                settled.append(slot)
                self._settled[slot] = start
            into = start - self._settled[slot]
            is_kept = into + span.length <= MOST_ROWS_BACK
            place = slot * MOST_ROWS_BACK + into if is_kept else None
            runs[span.length, is_kept].append((slot, first_row, place))
            self._running[slot] = start + span.length
            if not is_kept:
                passed.append(slot)
                self._settled[slot] = self._running[slot]

        def slots(some: list[int]) -> Tensor:
            return torch.tensor(some, dtype=torch.int64, device=device)

        return Wave(
            fresh=slots(fresh),
            restored=slots(restored),
            replays=tuple(_batch(length, entries, device) for length, entries in replays.items()),
            settled=slots(settled),
            runs=tuple(_batch(length, entries, device) for (length, _), entries in runs.items()),
            passed=slots(passed),
        )

    def _check(self, span: Span, back: int) -> None:
        if back < 0 or span.start > self._running[span.slot]:
            raise TargetError(
                f"{self._name} cannot go on at position {span.start} of slot {span.slot}: its recurrent "
                f"layers know {self._settled[span.slot]} to {self._running[span.slot]}, since a block of "
                f"more than {MOST_ROWS_BACK} rows cannot be rolled back; lower draft_length"
            )

    def run(self, mixer: _Mixer, hidden: Tensor, waves: Sequence[Wave]) -> Tensor:
        """Rows ``[T, D]`` through a layer, to the same; its states go on."""
        states = self._layers[mixer.layer_idx]
        out = torch.empty_like(hidden)
        for wave in waves:
            states.rewind(wave)
            for batch in wave.replays:
                assert states.inputs is not None
                states.advance(mixer, states.inputs[batch.rows], batch)
            states.settle(wave.settled)
            for batch in wave.runs:
                rows = hidden[batch.rows]
                out[batch.rows] = states.advance(mixer, rows, batch)
                if batch.kept is not None:
                    states.keep(batch.kept, rows)
            states.settle(wave.passed)
        return out


def _batch(length: int, entries: list[tuple[int, int, int | None]], device: torch.device) -> Batch:
    """Of ``(slot, first row, first row of the kept inputs)``."""
    steps = torch.arange(length, device=device)

    def spread(firsts: list[int]) -> Tensor:
        return (torch.tensor(firsts, device=device)[:, None] + steps).flatten()

    kept = [place for _, _, place in entries if place is not None]
    return Batch(
        slots=torch.tensor([slot for slot, _, _ in entries], device=device),
        length=length,
        rows=spread([first for _, first, _ in entries]),
        kept=spread(kept) if kept else None,
    )


class _LayerStates:
    """One layer's states, allocated when their shapes are seen."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._running: dict[StateKey, Tensor] = {}
        self._settled: dict[StateKey, Tensor] = {}
        self.inputs: Tensor | None = None  # [slots * MOST_ROWS_BACK, D]

    def rewind(self, wave: Wave) -> None:
        for key, running in self._running.items():
            if len(wave.fresh):
                running.index_fill_(0, wave.fresh, 0)
            if len(wave.restored):
                running.index_copy_(0, wave.restored, self._settled[key][wave.restored])

    def settle(self, slots: Tensor) -> None:
        if len(slots):
            for key, running in self._running.items():
                self._settled[key].index_copy_(0, slots, running[slots])

    def advance(self, mixer: _Mixer, rows: Tensor, batch: Batch) -> Tensor:
        """Rows ``[n * Q, D]`` from the running states on, which move behind them."""
        states = _GroupStates({key: running[batch.slots] for key, running in self._running.items()})
        out = mixer(rows.unflatten(0, (-1, batch.length)), states)
        for key, state in states.held.items():
            if key not in self._running:
                shape = (self._num_slots, *state.shape[1:])
                self._running[key], self._settled[key] = state.new_zeros(shape), state.new_zeros(shape)
            self._running[key].index_copy_(0, batch.slots, state)
        return out.flatten(0, 1)

    def keep(self, places: Tensor, rows: Tensor) -> None:
        if self.inputs is None:
            self.inputs = rows.new_zeros((self._num_slots * MOST_ROWS_BACK, rows.shape[1]))
        self.inputs.index_copy_(0, places, rows)


class _GroupStates:
    """The states of one batch, as a transformers layer asks its cache for them."""

    def __init__(self, held: dict[StateKey, Tensor]) -> None:
        self.held = held

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.held.get(("conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.held.get(("recurrent", state_idx))

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 0, **_: Any
    ) -> Tensor:
        """Take in inputs ``[n, channels, Q]`` of the convolution; gives those before them, too."""
        before = self.held.get(("conv", state_idx))
        if before is None:
            before = conv_states.new_zeros((*conv_states.shape[:2], conv_kernel_size))
        whole = torch.cat([before, conv_states], dim=-1)
        self.held["conv", state_idx] = whole[..., -before.shape[-1] :]
        return whole

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> Tensor:
        self.held["recurrent", state_idx] = recurrent_states
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        return False


@dataclass(frozen=True)
class _Mixer:
    """A recurrent layer's own forward."""

    forward: Callable[..., Tensor]
    layer_idx: int

    def __call__(self, rows: Tensor, states: _GroupStates | None) -> Tensor:
        """``[n, Q, D]`` to the same."""
        return self.forward(rows, cache_params=states, attention_mask=None)


def pack_mixer(layer: nn.Module) -> bool:
    """Let a decoder layer's recurrent mixer know requests; False when it has none that we can drive."""
    module = getattr(layer, "linear_attn", None)
    if module is None or "cache_params" not in inspect.signature(module.forward).parameters:
        return False
    # On the instance, so that weights keep their names; without a plan it is the layer's own forward.
    module.forward = partial(_packed_forward, module.forward, module.layer_idx)
    return True


def _packed_forward(
    forward: Callable[..., Tensor],
    layer_idx: int,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    packed: PackedPlan | None = None,
    **kwargs: Any,
) -> Tensor:
    """``[1, T, D]`` of packed rows to the same."""
    if packed is None:
        return forward(hidden_states, cache_params=cache_params, attention_mask=attention_mask, **kwargs)
    mixer = _Mixer(forward, layer_idx)
    if packed.cache is not None:
        return packed.cache.recurrent.run(mixer, hidden_states[0], packed.waves)[None]
    out = torch.empty_like(hidden_states[0])
    for group in packed.groups:  # without a cache all spans of a group are of one length
        out[group.rows] = mixer(group.take(hidden_states[0]), None).reshape_as(out[group.rows])
    return out[None]
