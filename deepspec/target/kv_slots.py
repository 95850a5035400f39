"""What is kept of each request between forwards: keys and values, and recurrent states beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from deepspec.target.recurrent import RecurrentSlots


class KVSlots(Cache):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of ``num_slots`` requests, ``[slots, positions, kv heads, head size]`` a layer.

    ``update`` writes the step's rows where :meth:`begin` said before the forward; layers are
    allocated at their first write because head sizes may differ between them, and keys' and values' too.
    Layers that keep neither have their states in ``recurrent``.
    """

    is_compileable = False

    def __init__(self, num_slots: int, max_positions: int, name: str = "the model") -> None:
        self.layers: list[Any] = []
        self.num_slots, self.max_positions = num_slots, max_positions
        self.index = torch.zeros(0, dtype=torch.int64)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.recurrent = RecurrentSlots(num_slots, name)
        self._writers: dict[int, int] = {}  # layers by the id of the keys that they wrote last

    def begin(self, index: Tensor) -> None:
        """Rows of the next forward, int64 ``[T]``: slot * max_positions + position."""
        self.index = index
        self._writers.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Scatter ``[1, kv heads, T, d]`` into the slots; attention reads them back from there."""
        self._writers[id(key_states)] = layer_idx
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx not in store:
                store[layer_idx] = new.new_zeros(
                    (self.num_slots, self.max_positions, new.shape[1], new.shape[3])
                )
            store[layer_idx].view(-1, new.shape[1], new.shape[3]).index_copy_(
                0, self.index, new[0].transpose(0, 1)
            )
        return key_states, value_states

    def layer_of(self, layer: int, key: Tensor) -> int:
        """Whose keys and values a layer reads: its own, or those of the earlier one that gave it ``key``."""
        return layer if layer in self.keys else self._writers[id(key)]

    def read(self, layer: int, slots: slice | Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[n, kv heads, length, d]`` of some slots; a view when the slots are a range."""
        keys, values = self.keys[layer][slots, :length], self.values[layer][slots, :length]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Packed rows have no one length; positions are always passed explicitly."""
        return 0
