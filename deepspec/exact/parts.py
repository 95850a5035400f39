"""Parts with random weights for a toy target, and a small drafter to check parts of other kinds with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import BuildContext, Drafter, PartConfig, Readout, TokenCount, TokenId
from deepspec.nn import SlotStore
from deepspec.strategy import Parts, Strategy
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, TokenBatch

if TYPE_CHECKING:
    import pluggy


@dataclass
class _Unrolled:
    """The hidden states ``[R, H]`` that the next step reads."""

    hidden: Tensor


class ToyDrafter(Drafter[_Unrolled]):
    """Autoregressive: h_k = tanh(U h_{k-1} + W E[x_{k-1}]) from the target's last hidden state."""

    name = "toy"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        size = context.target.hidden_size
        self.recurrent = nn.Linear(size, size)
        self.inward = nn.Linear(size, size)

    @property
    def hidden_size(self) -> int:
        return self.context.target.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        return ()

    def readout(self) -> Readout:
        return Readout(self.context.target.lm_head)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        # One position further on, so that position 0 is a start of zeros.
        self.slots = SlotStore(num_slots, max_positions + 1, (self.hidden_size,), dtype=dtype, device=device)

    def extend(self, extension: Extension) -> None:
        self.slots.write(extension.rows, extension.positions + 1, extension.features.last_hidden)

    def begin(self, anchors: Anchors) -> _Unrolled:
        stored = self.slots.read(anchors.slots, anchors.max_position + 1)
        return _Unrolled(stored[torch.arange(len(stored)), anchors.positions])

    def step(self, state: _Unrolled, k: int, previous: Tensor) -> Tensor:
        state.hidden = self._advance(state.hidden, previous)
        return state.hidden

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        before = features.last_hidden[anchors.rows, (anchors.columns - 1).clamp(min=0)]
        starts = batch.positions[anchors.rows, anchors.columns] == 0
        state = _Unrolled(before.masked_fill(starts[:, None], 0.0))
        columns = enumerate(anchors.previous.unbind(1))
        return torch.stack([self.step(state, k, previous) for k, previous in columns], dim=1)

    def release(self, slot: int) -> None:
        """Nothing to do: a slot's next request overwrites it."""

    def _advance(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return torch.tanh(self.recurrent(hidden) + self.inward(self.context.target.embedding[tokens]))


def for_vocabulary(
    strategy: Strategy, vocab_size: int, manager: pluggy.PluginManager | None = None
) -> Strategy:
    """``strategy`` with the vocabulary's last id wherever an option is a token id beyond it.

    An option that is a larger number of tokens leaves one of the vocabulary out.
    """
    changes: dict[str, dict[str, int]] = {}
    for kind, (_, config) in strategy.check(manager).items():
        for name, field in type(config).model_fields.items():
            types, given = (field.annotation, *get_args(field.annotation)), getattr(config, name) or 0
            if (TokenId in types and given >= vocab_size) or (TokenCount in types and given > vocab_size):
                changes.setdefault(kind, {})[name] = vocab_size - 1
    return strategy.replace(**changes)


@torch.no_grad()
def random_parts(
    strategy: Strategy, target: ToyTarget, seed: int, manager: pluggy.PluginManager | None = None
) -> Parts:
    """``strategy`` built for ``target`` in float64; every weight is random, so that all have effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = strategy.build(target.info, manager=manager)
        modules = parts.modules().double().eval()
        for weight in modules.parameters():
            if weight.is_floating_point():
                nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1.0)
    target.check_layers(parts.drafter.target_layers)
    return parts
