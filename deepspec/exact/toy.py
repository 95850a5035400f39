"""A target whose law is known: a random recurrence in float64 over a handful of tokens.

h_t = tanh(h_{t-1} W + E[x_t]), whose last unit is held at 1 so that logits may have a bias; logits are
``lm_head @ h``. Hidden states are kept by slot and position: forgetting a length is the whole rollback.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.interfaces import Rope, TargetInfo
from deepspec.target.packed import span_rows
from deepspec.types import Features, Span, TokenBatch


class ToyTarget:
    """A frozen target that the engine and every drafter run on, and whose exact law :meth:`law` gives.

    Args:
        vocab_size: V; its last id also serves drafters as a mask token.
        hidden_size: D, a multiple of 4. num_layers: layers that can be tapped, and one more.
        seed: of its random weights.
    """

    tokenizer = None
    stop_token_ids: tuple[int, ...] = ()
    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(
        self, vocab_size: int = 3, *, hidden_size: int = 8, num_layers: int = 4, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float) -> Tensor:
            return std * torch.randn(shape, generator=generator, dtype=torch.float64)

        self._recurrent = normal(hidden_size, hidden_size, std=1.5 * hidden_size**-0.5)
        self._taps = normal(num_layers - 1, hidden_size, hidden_size, std=hidden_size**-0.5)
        self.info = TargetInfo(
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            num_layers=num_layers,
            num_heads=2,
            num_kv_heads=1,
            head_dim=hidden_size // 2,
            intermediate_size=hidden_size,
            rms_norm_eps=1e-6,
            rope=Rope.plain(10_000.0, hidden_size // 2),
            max_positions=4096,
            mask_token_id=vocab_size - 1,
            embedding=normal(vocab_size, hidden_size, std=1.0),
            embedding_scale=1.0,
            lm_head=normal(vocab_size, hidden_size, std=1.5 * hidden_size**-0.5),
            final_softcap=None,
        )

    def law(self, contexts: Tensor | Sequence[int], temperature: float = 1.0) -> Tensor:
        """The distribution float64 ``[..., V]`` of the token after each context ``[..., n]``, n >= 1."""
        tokens = torch.as_tensor(contexts)
        hidden = torch.zeros((*tokens.shape[:-1], self.info.hidden_size), dtype=torch.float64)
        for column in tokens.unbind(-1):
            hidden = self._advance(hidden, column)
        logits = self.logits(hidden)
        if temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
        return (logits / temperature).softmax(dim=-1)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse taps that do not exist, and the last layer."""
        last = self.info.num_layers - 1
        wrong = [layer for layer in layers if not 0 <= layer < last]
        if wrong:
            raise ConfigError(
                f"target layer {wrong[0]} cannot be tapped; the toy target has layers 0..{last - 1} for that"
            )

    def new_slots(self, num_slots: int, max_positions: int) -> Tensor:
        """Hidden states ``[slots, positions, D]``."""
        return torch.full((num_slots, max_positions, self.info.hidden_size), torch.nan, dtype=torch.float64)

    def forward(
        self, tokens: Tensor, spans: Sequence[Span], cache: Tensor | None, layers: Sequence[int]
    ) -> Features:
        """One packed forward; see :meth:`deepspec.target.Target.forward`."""
        slots, positions = (torch.from_numpy(part) for part in span_rows(spans))
        last = torch.empty((len(tokens), self.info.hidden_size), dtype=torch.float64)
        lengths = torch.tensor([span.length for span in spans])
        first = lengths.cumsum(0) - lengths
        for step in range(int(lengths.max())):
            rows = (first + step)[lengths > step]
            if step > 0:
                before = last[rows - 1]
            else:
                before = _stored(cache, slots[rows], positions[rows] - 1, self.info.hidden_size)
            last[rows] = self._advance(before, tokens[rows])
        if cache is not None:
            cache[slots, positions] = last
        return self._features(last, layers)

    def features(self, batch: TokenBatch, layers: Sequence[int]) -> Features:
        """Features of training text; see :meth:`deepspec.target.Target.features`."""
        columns: list[Tensor] = []
        hidden = torch.zeros((len(batch.tokens), self.info.hidden_size), dtype=torch.float64)
        for tokens, positions in zip(batch.tokens.unbind(1), batch.positions.unbind(1), strict=True):
            hidden = self._advance(torch.where(positions[:, None] > 0, hidden, 0.0), tokens)
            columns.append(hidden)
        return self._features(torch.stack(columns, dim=1), layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of last hidden states ``[..., D]``."""
        return hidden @ self.info.lm_head.T

    def _advance(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        moved = torch.tanh(hidden @ self._recurrent + self.info.embedding[tokens])
        return torch.cat([moved[..., :-1], torch.ones_like(moved[..., :1])], dim=-1)

    def _features(self, last: Tensor, layers: Sequence[int]) -> Features:
        tapped = [torch.tanh(last @ self._taps[layer]) for layer in layers]
        return Features(torch.cat(tapped, dim=-1) if tapped else last[..., :0], last)


def _stored(cache: Tensor | None, slots: Tensor, positions: Tensor, size: int) -> Tensor:
    """Hidden states at some slots' positions, zero before the first."""
    if cache is None:
        return torch.zeros((len(slots), size), dtype=torch.float64)
    return torch.where(positions[:, None] >= 0, cache[slots, positions.clamp(min=0)], 0.0)
